package pool_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// rawBench has two disks that a pool could be made on, and makes pools on what tests give it instead.
type rawBench struct {
	t          *testing.T
	dirs       pool.Dirs
	data, meta *pooltest.LoopDisk
}

const rawSize = 8 << 20

func newRawBench(t *testing.T) *rawBench {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4)
	return &rawBench{t, pooltest.Dirs(t), pooltest.NewLoopDisk(t, rawSize, 0), pooltest.NewLoopDisk(t, rawSize, 0)}
}

func (r *rawBench) create(data, meta string, force bool) error {
	return pool.Create(pooltest.Context(r.t), r.dirs, pool.Spec{
		Name: "raw", Backing: pool.BackingDevice, DataDevice: data, MetadataDevice: meta, BaseSize: 16 << 20, Force: force,
	})
}

// refused fails unless nothing of a pool is made on these, with words, and they stay what they are.
func (r *rawBench) refused(what, data, meta string, force bool, class error, words ...string) {
	t := r.t
	t.Helper()
	before := map[string]string{}
	for _, d := range []*pooltest.LoopDisk{r.data, r.meta} {
		b, err := os.ReadFile(d.File)
		must(t, err)
		before[d.File] = string(b)
	}
	err := r.create(data, meta, force)
	if !errors.Is(err, class) {
		t.Errorf("%s: %v", what, err)
		if err == nil {
			must(t, pool.Destroy(pooltest.Context(t), r.dirs, "raw"))
		}
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%s: %v does not say %q", what, err, w)
		}
	}
	for _, d := range []*pooltest.LoopDisk{r.data, r.meta} {
		if b, err := os.ReadFile(d.File); err != nil || string(b) != before[d.File] {
			t.Errorf("%s: %s was changed, %v", what, d.Path, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(r.dirs.Root, "pools", "*")); err != nil || len(left) > 0 {
		t.Errorf("%s: left %v, %v", what, left, err)
	}
}

func (r *rawBench) write(d *pooltest.LoopDisk, off int64, text string) {
	r.t.Helper()
	f, err := fsutil.OpenDevice(d.Path, true)
	must(r.t, err)
	_, err = f.WriteAt([]byte(text), off)
	must(r.t, errors.Join(err, f.Sync(), f.Close()))
}

// linear puts a linear device over a disk, or one that fails to be read.
func (r *rawBench) dm(name, kind, params string, size int64) (path string, remove func()) {
	t := r.t
	t.Helper()
	dm, err := devmapper.Open()
	must(t, err)
	uuid := devmapper.UUID("TEST-" + name)
	_, err = dm.Create(devmapper.Name(name), uuid)
	must(t, err)
	remove = func() {
		_, err := dm.Remove(devmapper.ByUUID(uuid), devmapper.RemoveOptions{})
		must(t, errors.Join(err, dm.Close()))
	}
	must(t, dm.Load(devmapper.ByUUID(uuid), devmapper.LoadOptions{}, devmapper.Target{Length: devmapper.SectorsOf(uint64(size)), Type: kind, Params: params}))
	info, err := dm.Resume(devmapper.ByUUID(uuid), devmapper.ResumeOptions{})
	must(t, err)
	return fmt.Sprintf("/dev/dm-%d", info.Dev.Minor), remove
}

func TestDeviceRefused(t *testing.T) {
	r := newRawBench(t)
	data, meta := r.data.Path, r.meta.Path
	r.refused("missing", "/dev/none", meta, true, errs.ErrNotFound, "/dev/none")
	r.refused("no block device", r.data.File, meta, true, errs.ErrInvalid, r.data.File)
	r.refused("the same", data, data, true, errs.ErrInvalid, "same blocks")
	link := filepath.Join(t.TempDir(), "link")
	must(t, os.Symlink(data, link))
	r.refused("the same by another name", link, data, true, errs.ErrInvalid, "same blocks")
	small := pooltest.NewLoopDisk(t, 2<<20-512, 0)
	r.refused("data too small", small.Path, meta, true, errs.ErrInvalid, "too small", small.Path)
	small.Resize(t, 5<<20-512)
	r.refused("metadata too small", data, small.Path, true, errs.ErrInvalid, "too small", small.Path)

	for off, text := range map[int64]string{1080: "\x53\xef", 510: "\x55\xaa", rawSize - 512: "EFI PART", 4086: "SWAPSPACE2", 512: "LABELONE", rawSize - 8192: "\xfc\x4e\x2b\xa9"} {
		for _, d := range []*pooltest.LoopDisk{r.data, r.meta} {
			r.write(d, off, text)
			r.refused(fmt.Sprintf("%q", text), data, meta, false, errs.ErrExists, d.Path, fmt.Sprint(off))
			r.write(d, off, strings.Repeat("\x00", len(text)))
		}
	}

	must(t, fsutil.Mkfs(pooltest.Context(t), data, fsutil.MkfsOptions{Type: fsutil.Ext4}))
	dir := t.TempDir()
	must(t, fsutil.Mount(pooltest.Context(t), data, dir, fsutil.MountOptions{Type: fsutil.Ext4}))
	r.refused("mounted", data, meta, true, errs.ErrBusy, "mounted on "+dir)
	r.refused("mounted", meta, data, true, errs.ErrBusy, "mounted on "+dir)
	must(t, fsutil.Unmount(pooltest.Context(t), dir, fsutil.UnmountOptions{}))
	held, err := fsutil.OpenExclusive(meta, false) // as a mount in another namespace has it
	must(t, err)
	r.refused("claimed", data, meta, true, errs.ErrBusy, meta, "claimed")
	must(t, held.Close())

	onTop, remove := r.dm("raw-top", "linear", r.number(meta)+" 0", rawSize)
	r.refused("held", data, meta, true, errs.ErrBusy, "held by "+filepath.Base(onTop))
	r.refused("one on the other", onTop, meta, true, errs.ErrBusy, "held by")
	remove()
	unreadable, remove := r.dm("raw-error", "error", "", rawSize)
	r.refused("unreadable", unreadable, meta, true, errs.ErrBusy, "cannot be told")
	remove()

	space := pooltest.NewLoopDisk(t, rawSize, 0)
	if f, err := fsutil.OpenDevice(space.Path, true); err == nil {
		_, err = f.WriteAt([]byte("\x01\x00\x00\x00\xff\x03\x00\x00"), 1024) // version and last page
		_, werr := f.WriteAt([]byte("SWAPSPACE2"), 4086)
		must(t, errors.Join(err, werr, f.Sync(), f.Close()))
	}
	swap(t, unix.SYS_SWAPON, space.Path)
	r.refused("swap", space.Path, meta, true, errs.ErrBusy, "swap space in use")
	swap(t, unix.SYS_SWAPOFF, space.Path)

	out, err := exec.Command("losetup", "-f", "--show", data).Output()
	must(t, err)
	top := strings.TrimSpace(string(out))
	r.refused("behind a loop device", data, meta, true, errs.ErrBusy, "the disk behind "+top)
	must(t, exec.Command("losetup", "-d", top).Run())
	file := filepath.Join(t.TempDir(), "read-only")
	must(t, os.WriteFile(file, make([]byte, rawSize), 0o600))
	loop, err := fsutil.Attach(pooltest.Context(t), fsutil.LoopOptions{Path: file, ReadOnly: true, Autoclear: true})
	must(t, err)
	r.refused("read-only", loop.Path, meta, true, errs.ErrUnsupported, "read-only", loop.Path)
	must(t, loop.Close())
	must(t, fsutil.Detach(pooltest.Context(t), loop.Number))
}

func (r *rawBench) number(path string) string {
	r.t.Helper()
	n, err := fsutil.DevNumOf(path)
	must(r.t, err)
	return n.String()
}

// Partitions that the kernel knows speak against a disk, one in use also against --force; a partition is a device like others.
func TestDevicePartitions(t *testing.T) {
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	number := func(path string) int {
		var n int
		_, err := fmt.Sscanf(path, "/dev/loop%d", &n)
		must(t, err)
		return n
	}
	f, err := fsutil.OpenDevice(r.data.Path, true)
	must(t, err)
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	must(t, err)
	info.Flags |= unix.LO_FLAGS_PARTSCAN
	must(t, unix.IoctlLoopSetStatus64(int(f.Fd()), info))
	// A table with one partition from 1 MiB on.
	entry := "\x00\x00\x00\x00\x83\x00\x00\x00\x00\x08\x00\x00" + string([]byte{0, 0x30, 0, 0})
	_, err = f.WriteAt([]byte(entry), 446)
	must(t, err)
	_, err = f.WriteAt([]byte("\x55\xaa"), 510)
	must(t, errors.Join(err, f.Sync(), fsutil.RereadPartitions(f), f.Close()))
	part := fmt.Sprintf("loop%dp1", number(r.data.Path))
	r.refused("partitions", r.data.Path, r.meta.Path, false, errs.ErrExists, "dos at 510", part)
	r.refused("disk and its partition", r.data.Path, "/dev/"+part, true, errs.ErrInvalid, "same blocks")
	held, err := fsutil.OpenExclusive("/dev/"+part, false)
	must(t, err)
	r.refused("a partition in use", r.data.Path, r.meta.Path, true, errs.ErrBusy, r.data.Path)
	must(t, held.Close())

	// On the partition.
	must(t, r.create("/dev/"+part, r.meta.Path, false))
	r.inUse(r.data.Path, "partition "+part+" is held by")
	must(t, pool.Destroy(ctx, r.dirs, "raw"))
	// Instead of the partition: it is gone, and it is there again if the create fails.
	cancelled, cancel := context.WithCancel(ctx)
	reset := failAt("pool.create.labelled", cancel)
	err = pool.Create(cancelled, r.dirs, pool.Spec{Name: "raw", Backing: pool.BackingDevice, DataDevice: r.data.Path, MetadataDevice: r.meta.Path, BaseSize: 16 << 20, Force: true})
	reset()
	mustFail(t, err, context.Canceled)
	if _, err := os.Stat("/sys/class/block/" + part); err != nil {
		t.Errorf("after a create that failed: %v", err)
	}
	must(t, r.create(r.data.Path, r.meta.Path, true))
	if _, err := os.Stat("/sys/class/block/" + part); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the partition is still there: %v", err)
	}
	must(t, pool.Destroy(ctx, r.dirs, "raw"))
}

func (r *rawBench) inUse(disk, words string) {
	r.t.Helper()
	other := *r
	other.dirs = pooltest.Dirs(r.t)
	err := other.create(disk, r.meta.Path, true)
	mustFail(r.t, err, errs.ErrBusy)
	if !strings.Contains(err.Error(), words) {
		r.t.Errorf("%v does not say %q", err, words)
	}
}

// swap has the kernel begin or end to swap to a device.
func swap(t *testing.T, call uintptr, path string) {
	t.Helper()
	p, err := unix.BytePtrFromString(path)
	must(t, err)
	if _, _, errno := unix.Syscall(call, uintptr(unsafe.Pointer(p)), 0, 0); errno != 0 {
		t.Fatalf("system call %d on %s: %v", call, path, errno)
	}
}

// failAt cancels an operation when it reaches a point, until the result is called.
func failAt(point string, cancel func()) (reset func()) {
	fault.Set(func(name string) error {
		if name == point {
			cancel()
			return context.Canceled
		}
		return nil
	})
	return func() { fault.Set(nil) }
}
