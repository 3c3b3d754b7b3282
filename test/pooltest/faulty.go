package pooltest

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// FaultyDisk is a disk with an ext4 file system, parts of which can be made to fail.
type FaultyDisk struct {
	Dir string // where it is mounted

	t    testing.TB
	uuid devmapper.UUID
	dev  devmapper.DevNum
	loop *fsutil.Loop
	size devmapper.Sectors
	dm   *devmapper.Client
}

// Fault is a way of failing.
type Fault string

// The faults.
const (
	Fails          Fault = "error"        // nothing can be read or written
	FailsWrites    Fault = "writes"       // what is there can be read; no flush of the disk succeeds (flakey)
	FailsSometimes Fault = "intermittent" // every other second nothing can be read or written (flakey)
	FailsReads     Fault = "reads"        // bad blocks, which are good again once they are written (dust)
)

// NewFaultyDisk makes a disk that works, and mounts it on dir.
func NewFaultyDisk(t testing.TB, dir string, size int64) *FaultyDisk {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.Flakey)
	file := filepath.Join(t.TempDir(), "disk")
	d := &FaultyDisk{Dir: dir, t: t, size: devmapper.SectorsOf(uint64(size))}
	d.uuid = devmapper.UUID(strings.ReplaceAll("TEST-"+file, "/", "-"))
	var err error
	if d.dm, err = devmapper.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.dm.Close() })
	if err := fsutil.Allocate(Context(t), file, uint64(size), fsutil.Sparse); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(unmountIfMounted(d.Dir), d.remove()); err != nil {
			t.Error(err)
		}
	})
	if err := d.activate(file); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *FaultyDisk) activate(file string) error {
	ctx := Context(d.t)
	loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file, Autoclear: true})
	if err != nil {
		return err
	}
	d.loop = loop // a disk of which everything fails does not hold it
	d.dev = devmapper.DevNum(loop.DevNum)
	if _, err := d.dm.Create(devmapper.Name(d.uuid), d.uuid); err != nil {
		return err
	}
	if err := d.load(d.linear(0, d.size)); err != nil {
		return err
	}
	path, err := d.path()
	if err != nil {
		return err
	}
	if err := fsutil.Mkfs(ctx, path, fsutil.MkfsOptions{Type: fsutil.Ext4}); err != nil {
		return err
	}
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return err
	}
	return d.mount(ctx)
}

func (d *FaultyDisk) path() (string, error) {
	info, err := d.dm.Info(devmapper.ByUUID(d.uuid))
	return fmt.Sprintf("/dev/dm-%d", info.Dev.Minor), err
}

func (d *FaultyDisk) mount(ctx context.Context) error {
	path, err := d.path()
	if err != nil {
		return err
	}
	return fsutil.Mount(ctx, path, d.Dir, fsutil.MountOptions{Type: fsutil.Ext4})
}

func (d *FaultyDisk) remove() error {
	_, err := d.dm.Remove(devmapper.ByUUID(d.uuid), devmapper.RemoveOptions{})
	if errors.Is(err, devmapper.ErrNotFound) {
		err = nil
	}
	if d.loop != nil {
		err = errors.Join(err, d.loop.Close())
	}
	return err
}

// load puts a table in the place of the present one. What is in memory is not written first: the disk may be
// unable to take it.
func (d *FaultyDisk) load(targets ...devmapper.Target) error {
	ref := devmapper.ByUUID(d.uuid)
	if err := d.dm.Load(ref, devmapper.LoadOptions{}, targets...); err != nil {
		return err
	}
	_, err := d.dm.Resume(ref, devmapper.ResumeOptions{NoLockFS: true})
	return err
}

func (d *FaultyDisk) linear(start, length devmapper.Sectors) devmapper.Target {
	return devmapper.Target{Start: start, Length: length, Type: "linear", Params: fmt.Sprintf("%s %d", d.dev, start)}
}

// Break makes the parts of the disk fail where some files lie, or all of it where none are named. The files
// get all their blocks first.
func (d *FaultyDisk) Break(f Fault, files ...string) {
	d.t.Helper()
	parts := []part{{0, d.size}}
	if len(files) > 0 {
		parts = nil
	}
	for _, file := range files {
		p, err := partsOf(file)
		if err != nil {
			d.t.Fatal(err)
		}
		parts = append(parts, p...)
	}
	d.breakParts(f, parts)
}

// BreakHead makes the first length bytes of a file fail.
func (d *FaultyDisk) BreakHead(f Fault, file string, length int64) {
	d.t.Helper()
	parts, err := partsOf(file)
	if err != nil {
		d.t.Fatal(err)
	}
	parts[0].length = min(parts[0].length, devmapper.SectorsOf(uint64(length)))
	d.breakParts(f, parts[:1])
}

func (d *FaultyDisk) breakParts(f Fault, parts []part) {
	d.t.Helper()
	slices.SortFunc(parts, func(a, b part) int { return cmp.Compare(a.start, b.start) })
	var err error
	if f == FailsReads {
		err = d.dust(parts)
	} else {
		err = d.load(d.targets(f, parts)...)
	}
	if err != nil {
		d.t.Fatal(err)
	}
}

// Heal makes the disk work again. The file system on it may have to be checked, see Remount.
func (d *FaultyDisk) Heal() {
	d.t.Helper()
	if err := d.load(d.linear(0, d.size)); err != nil {
		d.t.Fatal(err)
	}
}

// Remount unmounts the disk, checks its file system and mounts it again, as a reboot does.
func (d *FaultyDisk) Remount() error {
	ctx := Context(d.t)
	if err := unix.Unmount(d.Dir, 0); err != nil {
		return fmt.Errorf("unmount %s: %w", d.Dir, err)
	}
	path, err := d.path()
	if err != nil {
		return err
	}
	if r, err := fsutil.Fsck(ctx, path, fsutil.Ext4, fsutil.FsckOptions{Repair: true}); err != nil {
		return fmt.Errorf("%w\n%s", err, r.Output)
	}
	return d.mount(ctx)
}

// part is a part of the disk.
type part struct{ start, length devmapper.Sectors }

// targets is a table in which the parts fail, which are in order and apart.
func (d *FaultyDisk) targets(f Fault, parts []part) (table []devmapper.Target) {
	at := devmapper.Sectors(0)
	for _, p := range parts {
		if p.start > at {
			table = append(table, d.linear(at, p.start-at))
		}
		t := devmapper.Target{Start: p.start, Length: p.length, Type: "flakey"}
		switch f {
		case FailsWrites:
			t.Params = fmt.Sprintf("%s %d 0 1 1 error_writes", d.dev, p.start)
		case FailsSometimes:
			t.Params = fmt.Sprintf("%s %d 1 1", d.dev, p.start)
		default:
			t.Type = "error"
		}
		table = append(table, t)
		at = p.start + p.length
	}
	if at < d.size {
		table = append(table, d.linear(at, d.size-at))
	}
	return table
}

// dustBlock is what can be bad, in bytes.
const dustBlock = 4096

// dust makes every eighth block of the parts bad.
func (d *FaultyDisk) dust(parts []part) error {
	t := devmapper.Target{Length: d.size, Type: "dust", Params: fmt.Sprintf("%s 0 %d", d.dev, dustBlock)}
	if err := d.load(t); err != nil {
		return err
	}
	ref := devmapper.ByUUID(d.uuid)
	const each = dustBlock / devmapper.SectorSize
	for _, p := range parts {
		for s := p.start / each; s < (p.start+p.length)/each; s += 8 {
			if _, err := d.dm.Message(ref, 0, fmt.Sprintf("addbadblock %d", s)); err != nil {
				return err
			}
		}
	}
	_, err := d.dm.Message(ref, 0, "enable")
	return err
}

// The kernel's struct fiemap and struct fiemap_extent (linux/fiemap.h).
const (
	fiemapRequest = 0xc020660b // FS_IOC_FIEMAP
	fiemapHead    = 32
	fiemapExtent  = 56
	fiemapSync    = 1
	fiemapMost    = 512
)

// partsOf returns where a file lies on the disk, with blocks for all of it.
func partsOf(path string) ([]part, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, fi.Size()); err != nil {
		return nil, &os.PathError{Op: "fallocate", Path: path, Err: err}
	}
	b := make([]byte, fiemapHead+fiemapMost*fiemapExtent)
	le := binary.LittleEndian
	le.PutUint64(b[8:], uint64(fi.Size()))
	le.PutUint32(b[16:], fiemapSync)
	le.PutUint32(b[24:], fiemapMost)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fiemapRequest, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return nil, &os.PathError{Op: "fiemap", Path: path, Err: errno}
	}
	var parts []part
	for i := range int(le.Uint32(b[20:])) {
		e := b[fiemapHead+i*fiemapExtent:]
		parts = append(parts, part{devmapper.SectorsOf(le.Uint64(e[8:])), devmapper.SectorsOf(le.Uint64(e[16:]))})
	}
	if len(parts) == fiemapMost {
		return nil, fmt.Errorf("%s lies in more than %d pieces", path, fiemapMost)
	}
	return parts, nil
}
