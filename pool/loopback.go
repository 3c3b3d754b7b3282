package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointFilesMetadata = fault.New("pool.create.metadata-file")
	pointFilesSpare    = fault.New("pool.create.spare-file")
	pointFilesData     = fault.New("pool.create.data-file")
	pointFilesRemoved  = fault.New("pool.destroy.data-file")
)

// backing is what a pool lies on: it makes, finds and takes away two block devices.
type backing interface {
	// create makes what the record describes. A part that is there already is an error.
	create(ctx context.Context) error
	// attach makes the two devices available. They stay until the result is closed and no dm table
	// uses them any more.
	attach(ctx context.Context) (attached, error)
	// detached waits until nothing of the backing is attached, and ends what a dead process left.
	detached(ctx context.Context) error
	// remove takes away what create made. What is not there is no error.
	remove(ctx context.Context) error
	// under tells whether the running pool lies on this backing. What is not there any more cannot lie under
	// anything else.
	under(dm *devmapper.Client) (bool, error)
	// paths returns what an attached backing's devices are called, "" where they are not.
	paths(ctx context.Context) (data, metadata string, err error)
	// names returns what people call data and metadata: files, devices, volumes.
	names() (data, metadata string)
	// devices returns the block devices that data and metadata are on now: none of a file that is not attached, of a volume that
	// is not active.
	devices(ctx context.Context) ([]devmapper.DevNum, error)
	// open opens data and metadata where they lie, of a pool that does not run; while it runs, only their sizes are right. It
	// may make them available for as long as they are open. What is not there is ErrNotFound.
	open(ctx context.Context, write bool) (*media, error)
	// check returns what is wrong with the backing of a pool, which runs or not: what is missing (FoundBackingMissing), twice
	// there, or left by somebody who died. It changes nothing.
	check(ctx context.Context, running bool) ([]Finding, error)
	// install puts metadata that a file in the pool's folder holds in the place of the metadata, for good, of a pool that
	// does not run. The file is gone afterwards; it can be repeated as long as it is there. See installCopy.
	install(ctx context.Context, path string) error
	// room tells how large the devices are, and how large they could be made now.
	room(ctx context.Context) (Room, error)
	// grow makes the devices at least that large, in bytes; 0 leaves one as it is, and so does less than it has. It works while
	// the pool runs and while it does not, and can be repeated from any point. What does not fit is ErrNoSpace. Tables that
	// use the devices are the caller's.
	grow(ctx context.Context, data, metadata int64) error
}

// Room is what the devices of a backing have and could have, in bytes.
type Room struct {
	// What the devices have now: it may be more than the pool uses, where they have become larger.
	DataSize, MetadataSize int64
	// What they could be made to have now, each if the other stays as it is; no less than they have.
	DataMax, MetadataMax int64
	// Free is what is left below them: of the file system that files lie on, of a volume group. Nobody has promised it
	// to the pool.
	Free int64
}

// attached are the devices of a backing that is in use.
type attached struct {
	data, metadata devmapper.DevNum
	metadataPath   string
	dataSize       int64 // bytes
	metadataSize   int64 // bytes, all of the backing
	// Where they begin on their devices, in bytes. Data that does not begin with its device is reached through a linear device,
	// as the metadata always is: see activateLinear.
	dataStart, metadataStart int64
	close                    func() error
	// Of a device backing: what its devices are called now.
	dataName, metadataName string
}

// backing returns what the pool's record describes.
func (p *Pool) backing() (backing, error) {
	r := p.record
	switch {
	case r.Backing.Type == BackingLoopback:
		return loopback{p.files, r}, nil
	case r.Backing.Type == BackingLVM && r.Backing.LVM != nil:
		return newVolumes(p), nil
	}
	if r.Backing.Type == BackingDevice {
		return &rawDevices{files: p.files, record: r, dm: p.dm, wipe: p.wipe, locked: p.disksLocked}, nil
	}
	return nil, fmt.Errorf("pool %q: backing %q: %w", r.Name, r.Backing.Type, errs.ErrUnsupported)
}

// BackingLoopback is a pool on two files: a sparse one for the data, an allocated one for the
// metadata.
const BackingLoopback = "loopback"

// Its files lie in the pool's folder, wherever that is now: a copy of the folder is a pool of its own.
type loopback struct {
	files  files
	record metadata.Pool
}

func (l loopback) create(ctx context.Context) error {
	b := l.record.Backing
	// A pool whose metadata cannot be written is lost to a repair, so its file owns its room; the data
	// file grows as blocks are written.
	if err := fsutil.Allocate(ctx, l.files.metadata(), uint64(b.MetadataSize), fsutil.Full); err != nil {
		return err
	}
	if err := pointFilesMetadata.Hit(); err != nil {
		return err
	}
	if err := l.files.makeSpare(ctx, b.MetadataSize); err != nil {
		return err
	}
	if err := pointFilesSpare.Hit(); err != nil {
		return err
	}
	if err := fsutil.Allocate(ctx, l.files.data(), uint64(b.DataSize), fsutil.Sparse); err != nil {
		return err
	}
	return pointFilesData.Hit()
}

func (l loopback) attach(ctx context.Context) (a attached, err error) {
	for _, path := range []string{l.files.metadata(), l.files.data()} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			err := fmt.Errorf("%s is missing: %w", path, errs.ErrDamaged)
			return a, errs.WithHint(err, "put the file back; without it the pool's content is lost")
		}
	}
	meta, err := l.loop(ctx, l.files.metadata())
	if err != nil {
		return a, err
	}
	data, err := l.loop(ctx, l.files.data())
	if err != nil {
		_ = meta.Close()
		return a, err
	}
	a = attached{data: devmapper.DevNum(data.DevNum), metadata: devmapper.DevNum(meta.DevNum), metadataPath: meta.Path}
	a.close = func() error { return errors.Join(meta.Close(), data.Close()) }
	a.dataSize, err = sizeOf(data)
	if err == nil {
		a.metadataSize, err = sizeOf(meta)
	}
	if err != nil {
		_ = a.close()
	}
	return a, err
}

// under looks at the files behind the loop devices of the running pool: those of a copy of the folder are
// others.
func (l loopback) under(dm *devmapper.Client) (bool, error) {
	for path, uuid := range map[string]devmapper.UUID{
		l.files.data():     deviceUUID(l.record.UUID, suffixPool),
		l.files.metadata(): deviceUUID(l.record.UUID, suffixMetadata),
	} {
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			continue
		}
		deps, err := dm.Deps(devmapper.ByUUID(uuid))
		if err != nil {
			return false, err
		}
		if on, err := onFile(deps, path); err != nil || !on {
			return false, err
		}
	}
	return true, nil
}

// onFile tells whether one of the devices is a loop device of the file. The other loop devices of the machine, which may have hundreds, are not looked at.
func onFile(devices []devmapper.DevNum, path string) (bool, error) {
	for _, dev := range devices {
		loop, attached, err := fsutil.LoopAt(fsutil.DevNum(dev))
		if err != nil || attached && loop.IsFile(path) {
			return err == nil, err
		}
	}
	return false, nil
}

func sizeOf(l *fsutil.Loop) (int64, error) {
	n, err := fsutil.SizeOf(l.File)
	return int64(n), err
}

// loop attaches a file, or adopts the loop device that another process attached and died with:
// a file on two loop devices would be written behind each other's back.
func (l loopback) loop(ctx context.Context, path string) (*fsutil.Loop, error) {
	found, err := fsutil.FindLoops(path)
	if err != nil {
		return nil, err
	}
	for _, f := range found {
		if loop := adopt(f); loop != nil {
			return loop, nil
		}
	}
	return fsutil.Attach(ctx, fsutil.LoopOptions{Path: path, DirectIO: true, Autoclear: true})
}

// adopt opens an attached loop device, or returns nil where it was detached in between.
func adopt(l fsutil.LoopInfo) *fsutil.Loop {
	f, err := fsutil.OpenDevice(l.Path, true)
	if err != nil {
		return nil
	}
	now, ok, err := fsutil.LoopOf(l.Number)
	if err == nil && ok && now.Dev == l.Dev && now.Inode == l.Inode {
		if dev, err := fsutil.DevNumOfFile(f); err == nil {
			return &fsutil.Loop{Path: l.Path, Number: l.Number, DevNum: dev, DirectIO: now.DirectIO, File: f}
		}
	}
	_ = f.Close()
	return nil
}

func (l loopback) detached(ctx context.Context) error {
	for _, path := range []string{l.files.data(), l.files.metadata()} {
		found, err := fsutil.FindLoops(path)
		if err != nil {
			return err
		}
		for _, f := range found {
			if err := fsutil.Detach(ctx, f.Number); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l loopback) remove(ctx context.Context) error {
	if err := l.detached(ctx); err != nil {
		return err
	}
	if err := removeFiles(l.files.data()); err != nil {
		return fmt.Errorf("remove pool %q: %w", l.record.Name, err)
	}
	if err := pointFilesRemoved.Hit(); err != nil {
		return err
	}
	if err := removeFiles(append(l.files.besideMetadata(), l.files.metadata())...); err != nil {
		return fmt.Errorf("remove pool %q: %w", l.record.Name, err)
	}
	return nil
}

func (l loopback) paths(ctx context.Context) (data, meta string, err error) {
	one := func(path string) (string, error) {
		found, err := fsutil.FindLoops(path)
		if err != nil || len(found) == 0 {
			return "", err
		}
		return found[0].Path, nil
	}
	if data, err = one(l.files.data()); err != nil {
		return "", "", err
	}
	meta, err = one(l.files.metadata())
	return data, meta, err
}
