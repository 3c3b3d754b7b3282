package pooltest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/logwrites"
)

// Disk is a disk with an ext4 file system of which every write is logged, so that a power cut at any
// instant can be played.
type Disk struct {
	Dir string // where it is mounted

	t    testing.TB
	data string // file
	log  string // file
	uuid devmapper.UUID
	dm   *devmapper.Client
}

// NewDisk makes a disk and mounts it on dir.
func NewDisk(t testing.TB, dir string, size int64) *Disk {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LogWrites)
	place := t.TempDir()
	d := &Disk{Dir: dir, t: t, data: filepath.Join(place, "data"), log: filepath.Join(place, "log")}
	d.uuid = devmapper.UUID(strings.ReplaceAll("TEST-"+place, "/", "-"))
	var err error
	if d.dm, err = devmapper.Open(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.dm.Close() })
	for file, n := range map[string]int64{d.data: size, d.log: 4 * size} {
		if err := fsutil.Allocate(context.Background(), file, uint64(n), fsutil.Sparse); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if err := d.Remove(); err != nil {
			t.Error(err)
		}
	})
	if err := d.activate(size); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *Disk) activate(size int64) error {
	ctx := Context(d.t)
	data, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: d.data, Autoclear: true})
	if err != nil {
		return err
	}
	defer data.Close()
	log, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: d.log, Autoclear: true})
	if err != nil {
		return err
	}
	defer log.Close()
	if _, err := d.dm.Create(devmapper.Name(d.uuid), d.uuid); err != nil {
		return err
	}
	table := fmt.Sprintf("%d:%d %d:%d", data.DevNum.Major, data.DevNum.Minor, log.DevNum.Major, log.DevNum.Minor)
	err = d.dm.Load(devmapper.ByUUID(d.uuid), devmapper.LoadOptions{},
		devmapper.Target{Length: devmapper.SectorsOf(uint64(size)), Type: "log-writes", Params: table})
	if err != nil {
		return err
	}
	info, err := d.dm.Resume(devmapper.ByUUID(d.uuid), devmapper.ResumeOptions{})
	if err != nil {
		return err
	}
	path := fmt.Sprintf("/dev/dm-%d", info.Dev.Minor)
	if err := fsutil.Mkfs(ctx, path, fsutil.MkfsOptions{Type: fsutil.Ext4}); err != nil {
		return err
	}
	if err := os.MkdirAll(d.Dir, 0o700); err != nil {
		return err
	}
	return fsutil.Mount(ctx, path, d.Dir, fsutil.MountOptions{Type: fsutil.Ext4})
}

// Mark writes a mark into the log. It must have no spaces.
func (d *Disk) Mark(text string) {
	d.t.Helper()
	if _, err := d.dm.Message(devmapper.ByUUID(d.uuid), 0, "mark "+text); err != nil {
		d.t.Fatal(err)
	}
}

// Remove unmounts the disk and takes its devices away. The log stays.
func (d *Disk) Remove() error {
	err := unmountIfMounted(d.Dir)
	_, rerr := d.dm.Remove(devmapper.ByUUID(d.uuid), devmapper.RemoveOptions{})
	if errors.Is(rerr, devmapper.ErrNotFound) {
		rerr = nil
	}
	return errors.Join(err, rerr)
}

func unmountIfMounted(dir string) error {
	err := unix.Unmount(dir, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Replay is a log being played on a copy of the disk.
type Replay struct {
	*logwrites.Log
	disk *Disk
	file *os.File // the copy as it was after at entries
	log  *os.File
	at   int
	loop *fsutil.Loop // of file
}

// Replay begins to play the log of a disk that was removed.
func (d *Disk) Replay() *Replay {
	d.t.Helper()
	log, err := os.Open(d.log)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = log.Close() })
	l, err := logwrites.Read(log)
	if err != nil {
		d.t.Fatal(err)
	}
	size, err := os.Stat(d.data)
	if err != nil {
		d.t.Fatal(err)
	}
	copy, err := os.OpenFile(d.data+".replay", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = copy.Close() })
	if err := copy.Truncate(size.Size()); err != nil {
		d.t.Fatal(err)
	}
	loop, err := fsutil.Attach(Context(d.t), fsutil.LoopOptions{Path: copy.Name(), Autoclear: true})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = loop.Close() })
	return &Replay{Log: l, disk: d, file: copy, log: log, loop: loop}
}

type sparseFile struct{ *os.File }

func (f sparseFile) Discard(offset, length int64) error {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	return unix.Fallocate(int(f.Fd()), punch, offset, length)
}

// CutAt makes the disk as a power cut left it after the first n entries of the log, which must not be less
// than the time before, mounts it in its place, runs fn, and takes it away again.
func (r *Replay) CutAt(n int, fn func()) {
	r.disk.t.Helper()
	r.CutWith(n, nil, fn)
}

// CutWith is CutAt for a disk that had a cache and kept parts of what was to be flushed next.
func (r *Replay) CutWith(n int, more []logwrites.Part, fn func()) {
	t := r.disk.t
	t.Helper()
	if err := r.Play(sparseFile{r.file}, r.at, n); err != nil {
		t.Fatal(err)
	}
	r.at = n
	if err := r.mountCut(more); err != nil {
		t.Fatalf("mount the disk after %d entries: %v", n, err)
	}
	defer func() {
		if err := r.removeCut(); err != nil {
			t.Error(err)
		}
	}()
	fn()
}

// overlay is the uuid of the device that takes the writes that are made after a cut.
func (r *Replay) overlay() devmapper.UUID { return r.disk.uuid + "-cut" }

// mountCut mounts the disk as it is now. What is written to it goes elsewhere (dm-snapshot), and is forgotten.
func (r *Replay) mountCut(more []logwrites.Part) error {
	ctx := Context(r.disk.t)
	writes := r.disk.data + ".cut"
	if err := os.RemoveAll(writes); err != nil {
		return err
	}
	if err := fsutil.Allocate(ctx, writes, overlaySize, fsutil.Sparse); err != nil {
		return err
	}
	cow, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: writes, Autoclear: true})
	if err != nil {
		return err
	}
	defer cow.Close()
	if _, err := r.disk.dm.Create(devmapper.Name(r.overlay()), r.overlay()); err != nil {
		return err
	}
	path, err := r.activateCut(cow)
	if err == nil {
		err = r.playMore(path, more)
	}
	if err == nil {
		err = fsutil.Mount(ctx, path, r.disk.Dir, fsutil.MountOptions{Type: fsutil.Ext4})
	}
	if err != nil {
		err = errors.Join(err, r.removeCut())
	}
	return err
}

// overlaySize is how much may be written to a disk after a cut, in bytes.
const overlaySize = 1 << 30

func (r *Replay) activateCut(cow *fsutil.Loop) (string, error) {
	size, err := r.file.Stat()
	if err != nil {
		return "", err
	}
	ref := devmapper.ByUUID(r.overlay())
	err = r.disk.dm.Load(ref, devmapper.LoadOptions{}, devmapper.Target{
		Length: devmapper.SectorsOf(uint64(size.Size())), Type: "snapshot",
		Params: fmt.Sprintf("%s %s N 8", devmapper.DevNum(r.loop.DevNum), devmapper.DevNum(cow.DevNum)),
	})
	if err != nil {
		return "", err
	}
	info, err := r.disk.dm.Resume(ref, devmapper.ResumeOptions{})
	return fmt.Sprintf("/dev/dm-%d", info.Dev.Minor), err
}

func (r *Replay) playMore(path string, more []logwrites.Part) error {
	if len(more) == 0 {
		return nil
	}
	f, err := fsutil.OpenDevice(path, true)
	if err != nil {
		return err
	}
	return errors.Join(r.PlayParts(zeroingDevice{f}, more), f.Sync(), f.Close())
}

// zeroingDevice writes zeros where something was discarded.
type zeroingDevice struct{ *os.File }

func (d zeroingDevice) Discard(offset, length int64) error {
	_, err := io.CopyN(io.NewOffsetWriter(d.File, offset), zeros{}, length)
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

func (r *Replay) removeCut() error {
	err := unmountIfMounted(r.disk.Dir)
	_, rerr := r.disk.dm.Remove(devmapper.ByUUID(r.overlay()), devmapper.RemoveOptions{})
	return errors.Join(err, rerr)
}
