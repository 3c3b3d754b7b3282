package pool_test

import (
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func onDisk(path string) pool.Spec {
	return pool.Spec{Name: pooltest.PoolName, Backing: pool.BackingLVM, Device: path, BaseSize: 64 << 20}
}

// createFails creates a pool that fails at a point.
func createFails(t *testing.T, e *pooltest.Env, spec pool.Spec, point string) {
	t.Helper()
	fault.Set(pooltest.Job{Action: pooltest.ActionFail, Point: point}.Hook(func(string) {}))
	err := pool.Create(pooltest.Context(t), e.Dirs, spec)
	fault.Set(nil)
	mustFail(t, err, pooltest.ErrInjected)
}

// A pool on a disk: one that carries something or is in use is refused, a create that fails leaves every byte as it was, though it had
// been told to wipe it, and destroy takes the volume group away.
func TestVolumesOnDisk(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	disk := pooltest.NewLoop(t, 160<<20)
	other := pooltest.NewLoop(t, 16<<20)
	pooltest.NewVG(t, "dmlayer-test", other) // the name that the pool's would have
	must(t, fsutil.Mkfs(ctx, disk.Path, fsutil.MkfsOptions{Type: fsutil.Ext4}))
	sum, err := pooltest.Checksum(disk.Path)
	must(t, err)
	unchanged := func() {
		t.Helper()
		if now, err := pooltest.Checksum(disk.Path); err != nil || now != sum {
			t.Errorf("the disk has changed: %x, %x, %v", now, sum, err)
		}
	}
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	err = pool.Create(ctx, e.Dirs, onDisk(disk.Path))
	if mustFail(t, err, errs.ErrExists); !strings.Contains(err.Error(), "ext4") {
		t.Errorf("it does not say what it found: %v", err)
	}
	force := onDisk(disk.Path)
	force.Force = true
	dir := t.TempDir()
	must(t, fsutil.Mount(ctx, disk.Path, dir, fsutil.MountOptions{Type: fsutil.Ext4, ReadOnly: true}))
	err = pool.Create(ctx, e.Dirs, force)
	if mustFail(t, err, errs.ErrBusy); !strings.Contains(err.Error(), dir) {
		t.Errorf("it does not say who uses it: %v", err)
	}
	must(t, fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}))
	mustFail(t, pool.Create(ctx, e.Dirs, onDisk(other.Path)), errs.ErrExists)
	unchanged()
	createFails(t, e, force, "pool.create.labelled")
	unchanged()

	must(t, pool.Create(ctx, e.Dirs, force))
	s := e.Open(t)
	_, err = s.CreateSnapshot(ctx, "one", layer.SnapshotOptions{})
	must(t, err)
	must(t, e.Check(ctx))
	useNode(t, s, "one")
	destroy(t, e)
	if found, err := fsutil.Probe(disk.Path); err != nil || len(found) > 0 {
		t.Errorf("left on the disk: %v, %v", found, err)
	}
	if _, err := os.Stat(e.Store()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("record store: %v", err)
	}
}

// thinPools describes the thin pools of a volume group.
func thinPools(t *testing.T) string {
	t.Helper()
	out := pooltest.LVM(t, "lvs", "--noheadings", "-a", "--units", "b", "-o", "lv_name,lv_size,chunk_size,zero,discards,lv_when_full", "testvg")
	var list []string
	for line := range strings.Lines(out) {
		if !strings.Contains(line, "WARNING") {
			list = append(list, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(list, "\n")
}

// A pool takes the place of a thin pool that holds nothing. When it is destroyed, or cannot be made, the thin pool is there again, as it
// was.
func TestVolumesReplaceThinPool(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	pooltest.NewVG(t, "testvg", pooltest.NewLoop(t, 256<<20))
	makePool := func(name string) {
		pooltest.LVM(t, "lvcreate", "-y", "--type", "thin-pool", "-L", "64m", "--poolmetadatasize", "8m", "-c", "128k", "-Zn", "--discards", "nopassdown", "-n", name, "testvg")
	}
	makePool("tp")
	pooltest.LVM(t, "lvchange", "-y", "--errorwhenfull", "y", "testvg/tp")
	makePool("used")
	pooltest.LVM(t, "lvcreate", "-y", "-V", "16m", "--thinpool", "used", "-n", "thin", "testvg")
	before := thinPools(t)

	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	spec := onVolumes("testvg")
	for name, class := range map[string]error{"used": errs.ErrBusy, "thin": errs.ErrInvalid, "none": errs.ErrNotFound} {
		spec.ThinPool = name
		mustFail(t, pool.Create(ctx, e.Dirs, spec), class)
	}
	spec.ThinPool = "tp"
	createFails(t, e, spec, "pool.lvm.metadata-volume")
	if now := thinPools(t); now != before {
		t.Errorf("after a create that failed:\n%s\nbefore:\n%s", now, before)
	}
	must(t, pool.Create(ctx, e.Dirs, spec))
	if st := state(t, e); st.BlockSize != 128<<10 || *st.DataTotal != 64<<20 {
		t.Errorf("the pool: %+v", st)
	}
	if now := thinPools(t); strings.Contains(now, "\ntp ") {
		t.Errorf("the thin pool is still there:\n%s", now)
	}
	destroy(t, e)
	if now := thinPools(t); now != before {
		t.Errorf("after destroy:\n%s\nbefore:\n%s", now, before)
	}
}

// Somebody makes thin devices in a thin pool between the look at it and the removal: it stays, with what it holds.
func TestVolumesThinPoolFilledMeanwhile(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	pooltest.NewVG(t, "testvg", pooltest.NewLoop(t, 128<<20))
	pooltest.LVM(t, "lvcreate", "-an", "-y", "--type", "thin-pool", "-L", "64m", "--poolmetadatasize", "8m", "-n", "tp", "testvg")
	before := thinPools(t)
	dm, err := devmapper.Open()
	must(t, err)
	defer dm.Close()
	filled := 0
	fault.Set(func(point string) error {
		if point != "pool.create.recorded" {
			return nil
		}
		filled++
		pooltest.LVM(t, "lvchange", "-ay", "testvg/tp")
		_, err := dm.Message(devmapper.ByName("testvg-tp"), 0, "create_thin 7")
		pooltest.LVM(t, "lvchange", "-an", "testvg/tp")
		return err
	})
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	spec := onVolumes("testvg")
	spec.ThinPool = "tp"
	err = pool.Create(ctx, e.Dirs, spec)
	fault.Set(nil)
	said(t, err, errs.ErrBusy, "1 thin devices")
	if now := thinPools(t); now != before || filled != 1 {
		t.Errorf("filled %d times, thin pools:\n%s\nbefore:\n%s", filled, now, before)
	}
}
