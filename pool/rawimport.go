package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// importDisks takes over a pool that lies on two devices, of which one is enough to find it.
func importDisks(ctx context.Context, dirs Dirs, o ImportOptions) (ImportReport, error) {
	return importMedia(ctx, dirs, o, func() (metadata.Pool, error) { return recordOfDisks(o.Devices) })
}

// importMedia takes over a pool that lies on devices or volumes, of whose record find tells what they tell. Its folder is made where it is
// not there.
func importMedia(ctx context.Context, dirs Dirs, o ImportOptions, find func() (metadata.Pool, error)) (report ImportReport, err error) {
	record, err := find()
	if err != nil {
		return report, err
	}
	if err := makeDirs(dirs.Root); err != nil {
		return report, err
	}
	if dirs, err = dirs.absolute(); err != nil {
		return report, err
	}
	dm, err := devmapper.Open()
	if err != nil {
		return report, err
	}
	defer dm.Close()
	im := importer{lies: record.Backing, inPlace: true, backups: []string{files{dirs: dirs}.backups()}}
	running, err := im.lieOn(dm, record, files{dirs: dirs, name: record.Name})
	if err != nil {
		return report, err
	}
	name, err := im.nameOnMedia(ctx, record, running, o)
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
	if running, err = im.lieOn(dm, record, p.files); err != nil {
		return report, err
	}
	if err := im.placeIsFree(ctx, record.UUID); err != nil {
		return report, err
	}
	if err := makeDirs(im.from.poolsDir(), im.from.dir()); err != nil {
		return report, err
	}
	if running {
		err = im.from.takeOver(record.UUID)
	}
	if err == nil {
		report, err = im.run(ctx, o)
	}
	if err != nil {
		_ = os.Remove(im.from.dir()) // an empty one
		return report, err
	}
	// Where the host has no room for a spare, pool check says so.
	if err := im.from.makeSpare(ctx, p.record.Backing.MetadataSize); err != nil && !errors.Is(err, errs.ErrNoSpace) {
		return report, err
	}
	return report, fsutil.SyncDir(im.from.poolsDir())
}

// placeIsFree is ErrExists where the folder is that of another pool, which may have lost its records.
func (im *importer) placeIsFree(ctx context.Context, uuid string) error {
	known, err := uuidOf(ctx, im.from)
	other := ""
	switch {
	case errors.Is(err, errs.ErrNotFound):
		if other, err = im.from.leftOfOther(uuid); err != nil {
			return err
		}
	case err != nil: // it could not be told
		other = fmt.Sprintf("the records of a pool %q cannot be read: %v", im.from.name, err)
	case known != uuid:
		other = fmt.Sprintf("there is another pool %q", im.from.name)
	}
	if other == "" {
		return nil
	}
	return errs.WithHint(fmt.Errorf("%s: %w", other, errs.ErrExists), "--name gives it another name")
}

// leftOfOther says what is in a folder without records that may be another pool's than the one with that UUID, "" for nothing.
func (f files) leftOfOther(uuid string) (string, error) {
	for _, path := range []string{f.data(), f.metadata(), f.savedDisks()} {
		if exists(path) {
			return path + " is there, of a pool whose records are lost", nil
		}
	}
	side, err := os.ReadDir(f.blobs())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if len(side) > 0 && !exists(f.backupDir(uuid)) {
		return f.blobs() + " holds side files, and no backup tells whose", nil
	}
	return "", nil
}

// lieOn makes the importer's backing one with these files, and tells whether a pool runs on it.
func (im *importer) lieOn(dm *devmapper.Client, record metadata.Pool, f files) (running bool, err error) {
	// One of its own: what is known of the pool's record changes meanwhile.
	media := &Pool{files: f, dm: dm, log: slog.New(slog.DiscardHandler), record: record}
	im.from = f
	if im.backing, err = media.backing(); err != nil {
		return false, err
	}
	_, err = dm.Info(devmapper.ByUUID(deviceUUID(record.UUID, suffixMetadata)))
	if errors.Is(err, devmapper.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// recordOfDisks reads the headers, and returns what they tell of the pool's record.
func recordOfDisks(paths []string) (r metadata.Pool, err error) {
	r.Backing.Type = BackingDevice
	for _, path := range paths {
		if path, err = filepath.Abs(path); err != nil {
			return r, err
		}
		n, err := fsutil.DevNumOf(path)
		if err != nil {
			return r, err
		}
		sector, err := firstSectors(path, n)
		if err != nil {
			return r, fmt.Errorf("read %s: %w", path, err)
		}
		h, err := parseHeader(sector)
		if errors.Is(err, errNoHeader) {
			err = errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrNotFound), "a pool on the volumes of a volume group is imported with --vg")
		}
		if err != nil {
			return r, fmt.Errorf("%s: %w", path, err)
		}
		if r.UUID != "" && r.UUID != h.UUID {
			return r, fmt.Errorf("%s is the %s of pool %s, and not of %s: %w", path, h.Role, h.UUID, r.UUID, errs.ErrInvalid)
		}
		r.UUID, r.Name = h.UUID, h.Name
		of := &r.Backing.DataDevice
		if h.Role == rawMetaRole {
			of = &r.Backing.MetadataDevice
		}
		if *of != "" {
			return r, fmt.Errorf("%s and %s are both the %s of pool %s: %w", *of, path, h.Role, h.UUID, errs.ErrInvalid)
		}
		*of = path
	}
	return r, nil
}

// nameOnMedia returns the name that the pool is going to have: of a pool that still runs, of which nothing can be read, the one that it
// was made with.
func (im *importer) nameOnMedia(ctx context.Context, record metadata.Pool, running bool, o ImportOptions) (string, error) {
	switch {
	case o.Name != "":
		return o.Name, nil
	case running && record.Name != "":
		return record.Name, nil
	case running:
		err := fmt.Errorf("the pool runs, and nothing tells its name: %w", errs.ErrInvalid)
		return "", errs.WithHint(err, "--name gives it one")
	}
	l, err := im.examine(ctx, o)
	if err != nil {
		return "", err
	}
	return l.copies[0].Pool.Name, nil
}
