package pool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestDevicePool(t *testing.T) {
	for _, sector := range []uint32{512, 4096} {
		e := pooltest.NewDevice(t, pool.Spec{BaseSize: 64 << 20}, sector)
		ctx := pooltest.Context(t)
		st := state(t, e)
		if st.State != pool.StateActive || st.Backing != pool.BackingDevice || st.DataDevice != e.DataDisk.Path || st.MetadataDevice != e.MetadataDisk.Path || st.DataFile != "" {
			t.Errorf("after create: %+v", st)
		}
		if st.DataTotal == nil || *st.DataTotal != 2<<30 || st.Discard != "nopassdown" {
			t.Errorf("after create: %+v", st)
		}
		for range 2 {
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
			if st := state(t, e); st.State != pool.StateInactive || st.DataDevice != e.DataDisk.Path {
				t.Errorf("after stop: %+v", st)
			}
		}
		must(t, pool.Start(ctx, e.Dirs, e.Name))
		left, err := os.ReadDir(e.Dirs.Root + "/pools/" + e.Name)
		must(t, err)
		for _, f := range left {
			if f.Name() != "records.db" && f.Name() != "metadata.spare" && f.Name() != "blobs" {
				t.Errorf("left in the folder: %s", f.Name())
			}
		}
	}
}

// said fails unless an error has that class and says all that.
func said(t *testing.T, err, class error, words ...string) {
	t.Helper()
	mustFail(t, err, class)
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%v does not say %q", err, w)
		}
	}
}

func TestDeviceFoundAgain(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 << 20, MetadataSize: 8 << 20, BaseSize: 16 << 20}, 0)
	ctx := pooltest.Context(t)
	stop := func() { t.Helper(); must(t, pool.Stop(ctx, e.Dirs, e.Name)) }
	start := func() { t.Helper(); must(t, pool.Start(ctx, e.Dirs, e.Name)) }
	stop()

	// Under each other's names.
	last := e.DataDisk.Path
	pooltest.Swap(t, e.DataDisk, e.MetadataDisk)
	start()
	if st := state(t, e); st.DataDevice != e.DataDisk.Path || st.MetadataDevice != e.MetadataDisk.Path || st.DataDevice == last {
		t.Errorf("after a swap: %+v", st)
	}
	stop()
	if st := state(t, e); st.DataDevice != e.DataDisk.Path {
		t.Errorf("not recorded: %+v", st)
	}

	// Not there.
	last = e.DataDisk.Path
	e.DataDisk.Detach(t)
	said(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged, "data device", last, "missing")
	said(t, pool.Destroy(ctx, e.Dirs, e.Name), errs.ErrDamaged, "data device", "missing")
	report, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
	must(t, err)
	if !report.Has(pool.FoundBackingMissing) {
		t.Errorf("check found %v", report.Findings)
	}
	e.DataDisk.Attach(t)
	start()
}

// A create that was killed is undone once its disks are there, under whatever name, and not before.
func TestDeviceUndoneLater(t *testing.T) {
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	r.write(r.data, 5000, "something of somebody")
	r.write(r.meta, 1<<20, "something else")
	var before [2][]byte
	for i, d := range []*pooltest.LoopDisk{r.data, r.meta} {
		b, err := os.ReadFile(d.File)
		must(t, err)
		before[i] = b
	}
	// The undo finds a disk missing.
	fault.Set(func(point string) error {
		switch point {
		case "pool.create.disks-cleared":
			return context.Canceled
		case "pool.destroy.devices":
			r.meta.Detach(t)
		}
		return nil
	})
	err := r.create(r.data.Path, r.meta.Path, false)
	fault.Set(nil)
	said(t, err, errs.ErrDamaged, "metadata device", "missing")
	_, err = pool.Inspect(ctx, r.dirs, "raw")
	said(t, err, errs.ErrDamaged, "metadata device", "missing")
	r.meta.Attach(t)
	pooltest.Swap(t, r.data, r.meta)
	_, err = pool.Inspect(ctx, r.dirs, "raw")
	mustFail(t, err, errs.ErrNotFound)
	for i, d := range []*pooltest.LoopDisk{r.data, r.meta} {
		if now, err := os.ReadFile(d.File); err != nil || !bytes.Equal(now, before[i]) {
			t.Errorf("disk %d is not what it was, %v", i, err)
		}
	}
}

// A copy of a disk is as good as the disk, so that one of the two must go; what lies below a device that shows the same does not count.
func TestDeviceCopied(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 << 20, MetadataSize: 8 << 20, BaseSize: 16 << 20}, 0)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	twin := pooltest.NewLoopDisk(t, 65<<20, 0)
	b, err := os.ReadFile(e.DataDisk.File)
	must(t, err)
	write(t, twin, 0, b)
	said(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged, "twice", twin.Path, e.DataDisk.Path)
	report, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
	must(t, err)
	if !report.Has(pool.FoundBackingTwice) {
		t.Errorf("check found %v", report.Findings)
	}
	write(t, twin, 0, make([]byte, 4096))

	// As a multipath device lies on its paths.
	r := &rawBench{t: t}
	top, remove := r.dm("raw-path", "linear", r.number(e.DataDisk.Path)+" 0", 65<<20)
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	if st := state(t, e); st.DataDevice != top {
		t.Errorf("on %s and not on %s", st.DataDevice, top)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	remove()
	must(t, pool.Start(ctx, e.Dirs, e.Name))
}

func write(t *testing.T, d *pooltest.LoopDisk, off int64, b []byte) {
	t.Helper()
	f, err := fsutil.OpenDevice(d.Path, true)
	must(t, err)
	_, err = f.WriteAt(b, off)
	must(t, errors.Join(err, f.Sync(), f.Close()))
}

// Disks that became larger are used, ones that became smaller are refused.
func TestDeviceResized(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 << 20, MetadataSize: 8 << 20, BaseSize: 16 << 20}, 0)
	ctx := pooltest.Context(t)
	totals := func() [2]int64 {
		st := state(t, e)
		if st.DataTotal == nil || st.MetadataTotal == nil {
			t.Fatalf("it does not run: %+v", st)
		}
		return [2]int64{*st.DataTotal, *st.MetadataTotal}
	}
	before := totals()
	e.DataDisk.Resize(t, 97<<20+12345*512)
	e.MetadataDisk.Resize(t, 17<<20)
	_, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{})
	must(t, err)
	after := totals()
	if after[0] != (96<<20+12345*512)/65536*65536 || after[1] < before[1]+7<<20 {
		t.Errorf("from %v to %v", before, after)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	if again := totals(); again != after {
		t.Errorf("after a start %v, before %v", again, after)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	e.DataDisk.Resize(t, 96<<20)
	said(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged, "smaller", e.DataDisk.Path)
	e.DataDisk.Resize(t, 104<<20)
	must(t, pool.Start(ctx, e.Dirs, e.Name))
}

// Of two creates on the same disks one makes a pool, whatever --force allows.
func TestDeviceTakenOnce(t *testing.T) {
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	third := pooltest.NewLoopDisk(t, rawSize, 0)
	pairs := [][2]string{{r.data.Path, r.meta.Path}, {r.data.Path, r.meta.Path}, {third.Path, r.data.Path}, {r.meta.Path, third.Path}}
	results := make(chan error, len(pairs))
	for i, p := range pairs {
		go func() {
			results <- pool.Create(ctx, r.dirs, pool.Spec{
				Name: fmt.Sprintf("raw%d", i), Backing: pool.BackingDevice, DataDevice: p[0], MetadataDevice: p[1], BaseSize: 16 << 20, Force: true,
			})
		}()
	}
	made := 0
	for range pairs {
		err := <-results
		if err == nil {
			made++
			continue
		}
		mustFail(t, err, errs.ErrBusy)
	}
	names, err := pool.List(ctx, r.dirs)
	must(t, err)
	if made != 1 || len(names) != 1 {
		t.Errorf("%d made, %v", made, names)
	}
	for _, name := range names {
		// Stopped, its disks carry it.
		must(t, pool.Stop(ctx, r.dirs, name))
		said(t, r.create(pairs[0][0], pairs[0][1], false), errs.ErrExists, "pool "+fmt.Sprintf("%q", name))
		must(t, pool.Destroy(ctx, r.dirs, name))
	}
}

// A copy of the folder describes the same disks, and is kept from them while the pool runs.
func TestDeviceFolderCopied(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 << 20, MetadataSize: 8 << 20, BaseSize: 16 << 20}, 0)
	ctx := pooltest.Context(t)
	other := pool.Dirs{Root: t.TempDir(), Run: e.Dirs.Run}
	must(t, os.CopyFS(other.Root, os.DirFS(e.Dirs.Root)))
	said(t, pool.Start(ctx, other, e.Name), errs.ErrDamaged, "copy of its folder")
	said(t, pool.Stop(ctx, other, e.Name), errs.ErrDamaged)
	said(t, pool.Destroy(ctx, other, e.Name), errs.ErrDamaged)
	must(t, pool.Start(ctx, e.Dirs, e.Name))
}

// A disk that does not answer is not waited for, and is named where one is missing.
func TestDeviceBesideSilentDisk(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 64 << 20, MetadataSize: 8 << 20, BaseSize: 16 << 20}, 0)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	other := pooltest.NewLoopDisk(t, rawSize, 0)
	r := &rawBench{t: t}
	silent, remove := r.dm("raw-silent", "linear", r.number(other.Path)+" 0", rawSize)
	dm, err := devmapper.Open()
	must(t, err)
	defer dm.Close()
	ref := devmapper.ByUUID("TEST-raw-silent")
	must(t, dm.Suspend(ctx, ref, devmapper.SuspendOptions{}))
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	e.DataDisk.Detach(t)
	said(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged, "missing", filepath.Base(silent)+" (", "suspended")
	_, err = dm.Resume(ref, devmapper.ResumeOptions{})
	must(t, err)
	remove()
	e.DataDisk.Attach(t)
	must(t, pool.Start(ctx, e.Dirs, e.Name))
}

// On disks with sectors of 4 KiB a node that would end in the middle of one, and could never be activated, is refused.
func TestDeviceLargeSectors(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		e := pooltest.NewDevice(t, pool.Spec{BaseSize: 320 << 20, FS: fs}, 4096)
		s := e.Open(t)
		ctx := pooltest.Context(t)
		for _, size := range []int64{328<<20 + 512, 300<<20 + 512} {
			_, err := s.CreateSnapshot(ctx, "odd", layer.SnapshotOptions{Size: size})
			mustFail(t, err, errs.ErrInvalid)
		}
		_, err := s.CreateSnapshot(ctx, "even", layer.SnapshotOptions{Size: 328<<20 + 4096})
		must(t, err)
		mustFail(t, s.Resize(ctx, "even", 340<<20+512), errs.ErrInvalid)
		must(t, s.Resize(ctx, "even", 340<<20+4096))
		m, err := s.Mount(ctx, "even", "", layer.MountOptions{})
		must(t, err)
		must(t, os.WriteFile(filepath.Join(m.Dir, "file"), bytes.Repeat([]byte("x"), 5<<20), 0o600))
		must(t, s.Unmount(ctx, "even"))
		if r, err := s.Fsck(ctx, "even", false); err != nil || !r.Clean {
			t.Errorf("%s: %+v, %v", fs, r, err)
		}
	}
}
