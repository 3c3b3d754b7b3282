package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// importDisks takes over a pool that lies on two devices, of which one is enough to find it. Its folder is made where it is not there.
func importDisks(ctx context.Context, dirs Dirs, o ImportOptions) (report ImportReport, err error) {
	if err := makeDirs(dirs.Root); err != nil {
		return report, err
	}
	if dirs, err = dirs.absolute(); err != nil {
		return report, err
	}
	record, err := recordOfDisks(o.Devices)
	if err != nil {
		return report, err
	}
	dm, err := devmapper.Open()
	if err != nil {
		return report, err
	}
	defer dm.Close()
	d := &rawDevices{files: files{dirs: dirs, name: record.Name}, record: record, dm: dm}
	im := importer{from: d.files, lies: record.Backing, backing: d, inPlace: true, backups: []string{d.files.backups()}}
	if im.from.name, err = im.nameOnDisks(ctx, d, o); err != nil {
		return report, err
	}
	d.files = im.from
	p, err := open(dirs, im.from.name, nil)
	if err != nil {
		return report, err
	}
	defer p.Close()
	if im.Session, err = p.exclusive(ctx, "import"); err != nil {
		return report, err
	}
	defer im.Exit()
	if known, err := uuidOf(ctx, im.from); err == nil && known != record.UUID {
		err := fmt.Errorf("there is another pool %q: %w", im.from.name, errs.ErrExists)
		return report, errs.WithHint(err, "--name gives it another name")
	}
	if err := makeDirs(im.from.poolsDir(), im.from.dir()); err != nil {
		return report, err
	}
	if err = d.takeOver(); err == nil {
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
		sector, err := firstSector(path, n)
		if err != nil {
			return r, fmt.Errorf("read %s: %w", path, err)
		}
		h, err := parseHeader(sector)
		if errors.Is(err, errNoHeader) {
			err = fmt.Errorf("%w: %w", err, errs.ErrNotFound)
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

// nameOnDisks returns the name that the pool is going to have: of a pool that still runs, of which nothing can be read, the one that it
// was made with.
func (im *importer) nameOnDisks(ctx context.Context, d *rawDevices, o ImportOptions) (string, error) {
	if o.Name != "" {
		return o.Name, nil
	}
	_, err := d.below(suffixMetadata)
	if err == nil {
		return d.record.Name, nil
	}
	if !errors.Is(err, devmapper.ErrNotFound) {
		return "", err
	}
	l, err := im.examine(ctx, o)
	if err != nil {
		return "", err
	}
	return l.copies[0].Pool.Name, nil
}

// takeOver is ErrBusy while the pool runs for a folder that is there. One whose folder is gone is made this folder's.
func (d *rawDevices) takeOver() error {
	if _, err := d.below(suffixMetadata); errors.Is(err, devmapper.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	mark, err := os.ReadFile(d.place())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	id, dir, _ := strings.Cut(string(mark), " ")
	if now, err := placeID(dir); err == nil && now == id && dir != d.files.dir() {
		err := fmt.Errorf("the pool runs, for %s: %w", dir, errs.ErrBusy)
		return errs.WithHint(err, "stop it there first")
	}
	return d.markPlace()
}
