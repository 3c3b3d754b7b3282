package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/thinpool"
)

// floor does what no manager can do without: the ioctls, the mount, and one fsynced write for a
// record. It works in the same pool, on thin ids that the library never hands out in a run this short.
type floor struct {
	dm     *devmapper.Client
	pool   *thinpool.Pool
	dev    devmapper.DevNum
	origin thinpool.ID
	size   devmapper.Sectors
	next   thinpool.ID
	record *os.File
	mount  string
	fs     string
	minor  uint32 // of what was activated last
}

const firstFloorID = 1 << 23

func newFloor(ctx context.Context, b *bench) (*floor, error) { return newFloorOf(ctx, b, parent) }

// newFloorOf returns a floor whose thin devices are snapshots of a node's.
func newFloorOf(ctx context.Context, b *bench, node string) (*floor, error) {
	status, err := b.store.PoolStatus(ctx)
	if err != nil {
		return nil, err
	}
	f := &floor{dm: nil, fs: b.fs, next: firstFloorID}
	if f.dm, err = devmapper.Open(); err != nil {
		return nil, err
	}
	ref := devmapper.ByUUID(devmapper.UUID("DMLAYER-" + status.UUID + "-pool"))
	f.pool = thinpool.NewPool(f.dm, ref)
	info, err := f.dm.Info(ref)
	if err != nil {
		return nil, err
	}
	f.dev = info.Dev
	f.size = devmapper.SectorsOf(uint64(status.BaseSize))
	if f.origin, err = parentID(ctx, b, status.UUID, node); err != nil {
		return nil, err
	}
	if f.record, err = os.Create(filepath.Join(b.dirs.Root, "floor")); err != nil {
		return nil, err
	}
	f.mount = filepath.Join(b.dirs.Run, "floor")
	return f, os.MkdirAll(f.mount, 0o755)
}

// parentID finds a node's thin id by attaching it: the dm UUID ends in it.
func parentID(ctx context.Context, b *bench, uuid, node string) (thinpool.ID, error) {
	if _, err := b.store.Attach(ctx, node, true); err != nil {
		return 0, err
	}
	i, err := b.store.Inspect(ctx, node)
	if err != nil {
		return 0, err
	}
	var minor uint32
	if _, err := fmt.Sscanf(i.Device, "/dev/dm-%d", &minor); err != nil {
		return 0, err
	}
	list, err := b.store.Devmapper().List(devmapper.UUID("DMLAYER-" + uuid))
	if err != nil {
		return 0, err
	}
	var id thinpool.ID
	for _, d := range list {
		if d.Dev.Minor == minor {
			if _, err := fmt.Sscan(strings.TrimPrefix(string(d.UUID), "DMLAYER-"+uuid+"-"), &id); err != nil {
				return 0, err
			}
		}
	}
	return id, b.store.Detach(ctx, node)
}

func (f *floor) close() {
	_ = f.record.Close()
	_ = f.dm.Close()
	_ = os.Remove(f.mount)
}

func (f *floor) round(_ context.Context, t *timer) error {
	t.start()
	id, err := f.create()
	if err != nil {
		return err
	}
	t.lap("prepare")
	if err := f.activate(id); err != nil {
		return err
	}
	if err := f.mountIt(); err != nil {
		return err
	}
	t.lap("mount")
	if err := unix.Unmount(f.mount, 0); err != nil {
		return err
	}
	if err := f.deactivate(id); err != nil {
		return err
	}
	t.lap("unmount")
	err = f.delete(id)
	t.lap("remove")
	return err
}

// create makes a thin device and its record.
func (f *floor) create() (thinpool.ID, error) {
	id := f.next
	f.next++
	if _, err := f.dm.Message(f.pool.Ref(), 0, fmt.Sprintf("create_snap %d %d", id, f.origin)); err != nil {
		return id, err
	}
	return id, f.write()
}

// write makes a record durable.
func (f *floor) write() error {
	if _, err := f.record.WriteAt(make([]byte, 4096), 0); err != nil {
		return err
	}
	return f.record.Sync()
}

func (f *floor) ref(id thinpool.ID) devmapper.Ref { return devmapper.ByName(f.name(id)) }

func (f *floor) name(id thinpool.ID) devmapper.Name {
	return devmapper.Name(fmt.Sprintf("floor-%d", id))
}

func (f *floor) activate(id thinpool.ID) error {
	if _, err := f.dm.Create(f.name(id), ""); err != nil {
		return err
	}
	table := thinpool.ThinTable{Pool: f.dev, ID: id}
	if err := f.dm.Load(f.ref(id), devmapper.LoadOptions{}, table.Target(f.size)); err != nil {
		return err
	}
	info, err := f.dm.Resume(f.ref(id), devmapper.ResumeOptions{})
	f.minor = info.Dev.Minor
	return err
}

// mountIt mounts the device that was activated last.
func (f *floor) mountIt() error {
	options := "errors=remount-ro,noinit_itable"
	if f.fs == "xfs" {
		options = "nouuid"
	}
	return unix.Mount(fmt.Sprintf("/dev/dm-%d", f.minor), f.mount, f.fs, 0, options)
}

func (f *floor) deactivate(id thinpool.ID) error {
	_, err := f.dm.Remove(f.ref(id), devmapper.RemoveOptions{})
	return err
}

func (f *floor) delete(id thinpool.ID) error {
	_, err := f.dm.Message(f.pool.Ref(), 0, fmt.Sprintf("delete %d", id))
	return err
}

func startProfile(path string) (stop func(), err error) {
	out, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(out); err != nil {
		return nil, err
	}
	return func() { pprof.StopCPUProfile(); _ = out.Close() }, nil
}
