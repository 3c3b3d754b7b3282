package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointImportKept     = fault.New("pool.import.kept")
	pointImportRecorded = fault.New("pool.import.recorded")
	pointImportMoved    = fault.New("pool.import.moved")
)

// ImportOptions say what Import takes over.
type ImportOptions struct {
	Dir     string   // the folder that holds the pool's data and metadata
	Devices []string // or the devices that it lies on, of which one will do: the other is searched for
	VG      string   // or the volume group in which its volumes are, or VG/LV with one of them where it has those of several pools
	Name    string   // "": that of the folder where it is in its place, else the one in the records
	Records string   // the file of a backup of the records; "": the newest copy that is whole
	Empty   bool     // no records: all devices are kept, and none has a name

	// Confirm is asked before anything is changed. Its error is Import's. nil is yes.
	Confirm func(ImportReport) error
}

// Import takes over a pool whose records are lost or do not belong to it, or that was made under another root or on another
// machine, with a copy of the records, and starts it. A folder that lies elsewhere is moved to its place under the root, on
// the same file system. What the copy does not know is kept, what it knows and the pool has not stays recorded; the report
// names both. Errors: ErrNotFound, ErrExists, ErrBusy, ErrDamaged, ErrInvalid, ErrUnsupported.
//
// Up to one rename nothing has changed; after it the pool is imported, and any start of it finishes what is left. A pool
// that was to be moved and lost its process in between can be imported again from where it is.
func Import(ctx context.Context, dirs Dirs, o ImportOptions) (ImportReport, error) {
	from, do := o.Dir, importPool
	switch {
	case o.VG != "":
		from, do = "volume group "+o.VG, importVolumes
	case len(o.Devices) > 0:
		from, do = strings.Join(o.Devices, " and "), importDisks
	}
	report, err := do(ctx, dirs, o)
	if err != nil {
		return report, fmt.Errorf("import pool from %s: %w", from, kernelError(err))
	}
	return report, nil
}

// importer is an Import with its locks.
type importer struct {
	*Session
	from    files            // where the pool is found
	lies    metadata.Backing // what it lies on, as far as that is known without its records
	backing backing          // the same
	inPlace bool
	backups []string // folders that may have backups of its records
}

func importPool(ctx context.Context, dirs Dirs, o ImportOptions) (report ImportReport, err error) {
	if err := makeDirs(dirs.Root); err != nil {
		return report, err
	}
	if dirs, err = dirs.absolute(); err != nil {
		return report, err
	}
	from, err := filesOf(dirs, o.Dir)
	if err != nil {
		return report, err
	}
	im := importer{
		from: from, lies: metadata.Backing{Type: BackingLoopback}, backing: loopback{files: from}, inPlace: from.dir() == files{dirs: dirs, name: from.name}.dir(),
		backups: []string{files{dirs: dirs}.backups(), from.backups()},
	}
	name, err := im.nameFor(ctx, o)
	if err != nil {
		return report, err
	}
	p, err := open(dirs, name, nil)
	if err != nil {
		return report, err
	}
	defer p.Close()
	if im.Session, err = p.exclusive(ctx, "import"); err != nil {
		return report, err
	}
	defer im.Exit()
	unlock, err := im.lockOrigin(ctx)
	if err != nil {
		return report, err
	}
	defer unlock()
	return im.run(ctx, o)
}

// filesOf returns the places of a pool in any folder: as those of a pool of that name under the root that it would have.
func filesOf(dirs Dirs, dir string) (files, error) {
	dir, err := folderAt(dirs, dir)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errs.ErrNotFound)
	}
	if err != nil {
		return files{}, err
	}
	f := files{dirs: Dirs{Root: filepath.Dir(filepath.Dir(dir)), Run: dirs.Run}, name: filepath.Base(dir)}
	st, err := os.Stat(dir)
	if errors.Is(err, os.ErrNotExist) {
		return f, fmt.Errorf("%w: %w", err, errs.ErrNotFound)
	}
	if err != nil || !st.IsDir() {
		return f, errs.WithHint(fmt.Errorf("%s is no folder: %w", dir, errs.ErrUnsupported), "a pool on two files is imported by the folder that holds them")
	}
	if f.dir() != dir {
		f.place = dir
	}
	return f, nil
}

// folderAt returns the path of a folder without links. A link in the place of a pool is the pool's folder itself.
func folderAt(dirs Dirs, dir string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return dir, err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err == nil && parent == (files{dirs: dirs}).poolsDir() {
		return filepath.Join(parent, filepath.Base(dir)), nil
	}
	return filepath.EvalSymlinks(dir)
}

// nameFor returns the name that the pool is going to have.
func (im *importer) nameFor(ctx context.Context, o ImportOptions) (string, error) {
	if im.inPlace {
		if o.Name != "" && o.Name != im.from.name {
			err := fmt.Errorf("it is in the place of pool %q: %w", im.from.name, errs.ErrInvalid)
			return "", errs.WithHint(err, "rename the folder to give it another name")
		}
		return im.from.name, nil
	}
	if o.Name != "" {
		return o.Name, nil
	}
	if err := im.notAttached(ctx); err != nil {
		return "", err
	}
	l, err := im.examine(ctx, o)
	if err != nil {
		return "", err
	}
	return l.copies[0].Pool.Name, nil
}

// lockOrigin keeps a pool from being started under the root where it was until now.
func (im *importer) lockOrigin(ctx context.Context) (unlock func(), err error) {
	if im.inPlace || im.from.place != "" || ValidateName("pool", im.from.name) != nil {
		return func() {}, nil
	}
	origin, err := open(im.from.dirs, im.from.name, nil)
	if err != nil {
		return nil, err
	}
	s, err := origin.exclusive(ctx, "import")
	if err != nil {
		return nil, errors.Join(err, origin.Close())
	}
	return func() {
		if _, err := os.Lstat(im.from.dir()); errors.Is(err, os.ErrNotExist) {
			_ = removeFiles(origin.locks.Path()) // the pool is another root's now
		}
		s.Exit()
		_ = origin.Close()
	}, nil
}

func (im *importer) run(ctx context.Context, o ImportOptions) (ImportReport, error) {
	if err := im.clear(ctx); err != nil {
		return ImportReport{}, err
	}
	if err := im.finishPrepared(ctx); err != nil {
		return ImportReport{}, err
	}
	l, err := im.examine(ctx, o)
	if err != nil {
		return ImportReport{}, err
	}
	if err := im.alone(ctx, l.label.UUID); err != nil {
		return ImportReport{}, err
	}
	plan, err := l.plan(im.p.files.name)
	if err != nil {
		return plan.report, err
	}
	if im.inPlace && l.healthy(im.p.files.name) && sameVolumes(l.own.Pool.Backing.LVM, im.lies.LVM) {
		return plan.report, im.healthy()
	}
	plan.records.Pool.Backing.LVM = volumesAt(plan.records.Pool.Backing.LVM, im.lies.LVM)
	if carried := im.lies.Type != BackingLoopback && !l.copies[0].own; !im.inPlace || carried { // what it would start is whoever's the records are
		r := &plan.records.Pool
		plan.report.Hook, r.Space.Hook = r.Space.Hook, ""
		plan.report.MkfsOptions, r.MkfsOptions = r.MkfsOptions, nil
		plan.report.MountOptions, r.MountOptions = r.MountOptions, nil
	}
	if o.Confirm != nil {
		if err := o.Confirm(plan.report); err != nil {
			return plan.report, err
		}
	}
	if err := im.commit(ctx, plan.records); err != nil {
		return plan.report, err
	}
	// No copy from before fits the pool as well as one of now.
	if err := im.CopyRecords(ctx); err != nil {
		if ctx.Err() != nil {
			return plan.report, err
		}
		plan.report.NotCopied = kernelError(err)
	}
	return plan.report, nil
}

// finishPrepared finishes a repair or renewal of which the folder's own records know. Without these, a renewal has not been.
func (im *importer) finishPrepared(ctx context.Context) error {
	own := metadata.New(im.from.store(), unlocked{})
	defer own.Close()
	unknown := errors.New("no records tell")
	err := im.from.finishPrepared(ctx, im.backing, func(ctx context.Context) (tid uint64, err error) {
		err = own.View(ctx, func(tx *metadata.Tx) error {
			r, err := tx.Pool()
			tid = r.TransactionID
			return err
		})
		if err != nil {
			err = unknown
		}
		return tid, err
	})
	if errors.Is(err, unknown) {
		return nil
	}
	return err
}

// examine reads the folder, in which there must be a copy to go by.
func (im *importer) examine(ctx context.Context, o ImportOptions) (*folder, error) {
	l, err := lookAt(ctx, im.from, im.lies.Type, im.backing, o.Records, o.Empty, im.backups)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil || len(l.copies) > 0 {
		return l, err
	}
	err = fmt.Errorf("no copy of the records can be used%s: %w", listed(l.unusable), errs.ErrDamaged)
	return nil, errs.WithHint(err, "--records names the file of a backup; --empty takes over the devices without their names. Nothing was changed")
}

func listed(problems []string) string {
	text := ""
	for _, p := range problems {
		text += "; " + p
	}
	return text
}

func (im *importer) healthy() error {
	return errs.WithHint(fmt.Errorf("pool %q is here, and its records belong to it: %w", im.p.files.name, errs.ErrExists),
		"there is nothing to import; to go back to an older copy, move records.db out of the way first")
}

// commit makes the store, brings the folder to its place and starts the pool.
func (im *importer) commit(ctx context.Context, records *metadata.Copy) error {
	p := im.p
	p.record = records.Pool
	// A cursor from before would hand out ids below the window.
	if err := im.writeCursor(cursor{next: p.record.HighID, high: p.record.HighID}); err != nil {
		return err
	}
	if err := im.from.revertRenewals(); err != nil {
		return err
	}
	kept, err := im.keepOld()
	if err != nil {
		return err
	}
	if err := im.record(records); err != nil {
		return errors.Join(err, im.putBack(kept))
	}
	if err := makeDirs(p.files.blobs()); err != nil {
		return err
	}
	if err := im.start(ctx); err != nil {
		return fmt.Errorf("it was imported as pool %q, and does not start: %w", p.files.name, err)
	}
	return nil
}

// keepOld keeps the store that is going to be replaced, under another name.
func (im *importer) keepOld() (kept bool, err error) {
	if err := removeFiles(im.from.oldStore()); err != nil {
		return false, err
	}
	err = os.Link(im.from.store(), im.from.oldStore())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	return err == nil, pointImportKept.Hit()
}

// record makes the store where the pool is, and then brings all to its place.
func (im *importer) record(records *metadata.Copy) error {
	if err := metadata.Restore(im.from.store(), records); err != nil {
		return err
	}
	if err := pointImportRecorded.Hit(); err != nil || im.inPlace {
		return err
	}
	to := im.p.files
	if err := makeDirs(to.poolsDir()); err != nil {
		return err
	}
	if err := os.Rename(im.from.dir(), to.dir()); err != nil {
		return err
	}
	if err := errors.Join(fsutil.SyncDir(to.poolsDir()), fsutil.SyncDir(filepath.Dir(im.from.dir()))); err != nil {
		return err
	}
	return pointImportMoved.Hit()
}

// putBack undoes what record has done.
func (im *importer) putBack(kept bool) error {
	if !im.inPlace {
		if err := os.Rename(im.p.files.dir(), im.from.dir()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if !kept {
		return removeFiles(im.from.store())
	}
	return os.Rename(im.from.oldStore(), im.from.store())
}

// sameFileSystem is ErrUnsupported where the folder cannot be moved to its place.
func (im *importer) sameFileSystem() error {
	to := im.p.files
	if err := makeDirs(to.poolsDir()); err != nil {
		return err
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(im.from.dir(), &a), unix.Stat(to.poolsDir(), &b)); err != nil {
		return err
	}
	if a.Dev == b.Dev {
		return nil
	}
	err := fmt.Errorf("it is on another file system than %s: %w", to.poolsDir(), errs.ErrUnsupported)
	return errs.WithHint(err, "move the folder to "+to.dir()+" and import that, or use the pool where it is with --root")
}
