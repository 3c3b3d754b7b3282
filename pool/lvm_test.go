package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// onVolumes is what the tests make pools of on volumes.
func onVolumes(vg string) pool.Spec {
	return pool.Spec{Name: pooltest.PoolName, Backing: pool.BackingLVM, VG: vg, BaseSize: 64 << 20}
}

// volumesOf returns what lvm2 has in a volume group: names, sizes, whether they are active.
func volumesOf(t *testing.T, vg string) string {
	t.Helper()
	var list []string
	for line := range strings.Lines(pooltest.LVM(t, "lvs", "--noheadings", "-a", "-o", "lv_name,lv_size,lv_active", "--units", "b", vg)) {
		if line = strings.Join(strings.Fields(line), " "); line != "" && !strings.HasPrefix(line, "WARNING") {
			list = append(list, line)
		}
	}
	return strings.Join(list, "\n")
}

func destroy(t *testing.T, e *pooltest.Env) {
	t.Helper()
	must(t, pool.Destroy(pooltest.Context(t), e.Dirs, e.Name))
}

// useNode writes into a node, commits it, and removes the layer again.
func useNode(t *testing.T, s *layer.Store, name string) {
	t.Helper()
	ctx := pooltest.Context(t)
	m, err := s.Mount(ctx, name, "", layer.MountOptions{})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(m.Dir, "file"), []byte("content"), 0o600))
	_, err = s.Commit(ctx, name, name+"-layer", layer.CommitOptions{})
	must(t, err)
	must(t, s.Unmount(ctx, name))
	must(t, s.Remove(ctx, name+"-layer"))
}

// A pool on volumes: whoever activated them, whatever the group and its disks are called by now. Nodes start no program of lvm2. What
// is somebody else's stays as it is.
func TestVolumes(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	mustFail(t, pool.Create(ctx, e.Dirs, onVolumes("testvg")), errs.ErrNotFound)

	file := filepath.Join(t.TempDir(), "disk")
	must(t, fsutil.Allocate(ctx, file, 256<<20, fsutil.Sparse))
	disk, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file})
	must(t, err)
	detach := func() {
		t.Helper()
		must(t, disk.Close())
		must(t, fsutil.Detach(ctx, disk.Number))
	}
	defer func() { detach() }()
	pooltest.LVM(t, "vgcreate", "testvg", disk.Path)

	// A name that is taken.
	pooltest.LVM(t, "lvcreate", "-an", "-L", "8m", "-n", "dmlayer-test-metadata", "testvg")
	others := volumesOf(t, "testvg")
	mustFail(t, pool.Create(ctx, e.Dirs, onVolumes("testvg")), errs.ErrExists)
	if now := volumesOf(t, "testvg"); now != others {
		t.Errorf("volumes after a create that failed:\n%s\nbefore:\n%s", now, others)
	}
	pooltest.LVM(t, "lvrename", "testvg", "dmlayer-test-metadata", "other")
	others = volumesOf(t, "testvg")

	// Too little room.
	spec := onVolumes("testvg")
	spec.DataSize = 300 << 20
	mustFail(t, pool.Create(ctx, e.Dirs, spec), errs.ErrNoSpace)

	spec = onVolumes("testvg")
	spec.DataPercent = 60
	duel(t, e, spec)
	if st := state(t, e); *st.DataTotal < 140<<20 || *st.DataTotal > 160<<20 || st.DataDevice == "" || st.MetadataDevice == "" {
		t.Errorf("after create: %+v", st)
	}
	s := e.Open(t)
	for _, name := range []string{"one", "two"} {
		_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{})
		must(t, err)
	}
	before := run.Started()
	useNode(t, s, "one")
	if n := run.Started() - before; n > 0 {
		t.Errorf("%d programs were started for the operations of a node", n)
	}
	extendVolumes(t, e)
	must(t, e.Check(ctx)) // stops it, and wants the volumes to be inactive

	// After a reboot: activated by somebody or not, on another device, the group with another name.
	pooltest.LVM(t, "vgchange", "-ay", "testvg")
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	pooltest.LVM(t, "vgchange", "-an", "testvg")
	detach()
	mustFail(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged)
	mustFail(t, pool.Destroy(ctx, e.Dirs, e.Name), errs.ErrDamaged)
	disk, err = fsutil.Attach(ctx, fsutil.LoopOptions{Path: file})
	must(t, err)
	pooltest.LVM(t, "vgrename", "testvg", "renamed")
	useNode(t, s, "two")

	destroy(t, e)
	if now := volumesOf(t, "renamed"); now != strings.ReplaceAll(others, " active", "") {
		t.Errorf("volumes after destroy:\n%s\nbefore:\n%s", now, others)
	}
	pooltest.LVM(t, "vgremove", "-f", "-y", "renamed")
}

// extendVolumes makes the pool larger, though a command of lvm2 died before it resumed the volume of the data.
func extendVolumes(t *testing.T, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	before := state(t, e)
	more := func(n int64) pool.Extension {
		return pool.Extension{Data: pool.Extent{Bytes: n, More: true}, Metadata: pool.Extent{Bytes: 4 << 20, More: true}}
	}
	_, err := pool.Extend(ctx, e.Dirs, e.Name, more(1<<30))
	mustFail(t, err, errs.ErrNoSpace)
	dm, err := devmapper.Open()
	must(t, err)
	defer dm.Close()
	const minors = "/dev/dm-"
	minor, err := strconv.ParseUint(strings.TrimPrefix(before.DataDevice, minors), 10, 32)
	must(t, err)
	list, err := dm.List("LVM-")
	must(t, err)
	for _, d := range list {
		if d.Dev.Minor == uint32(minor) {
			must(t, dm.Suspend(ctx, devmapper.ByUUID(d.UUID), devmapper.SuspendOptions{}))
		}
	}
	_, err = pool.Extend(ctx, e.Dirs, e.Name, more(16<<20))
	must(t, err)
	after := state(t, e)
	if *after.DataTotal != *before.DataTotal+(16<<20) || *after.MetadataTotal <= *before.MetadataTotal {
		t.Errorf("the pool has %d and %d bytes, before %d and %d", *after.DataTotal, *after.MetadataTotal, *before.DataTotal, *before.MetadataTotal)
	}
}

// Metadata on a volume is renewed, and repaired, as that in a file is.
func TestVolumesRenewAndRepair(t *testing.T) {
	e := pooltest.NewLVM(t, 128<<20, pool.Spec{DataSize: 64 << 20, BaseSize: 16 << 20})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	_, err := s.CreateSnapshot(ctx, "one", layer.SnapshotOptions{})
	must(t, err)
	lives, err := pool.Renew(ctx, e.Dirs, e.Name, nil)
	must(t, err)
	if lives.After.IDs >= lives.Before.IDs {
		t.Errorf("renewed: %+v", lives)
	}
	report, err := pool.RepairMetadata(ctx, e.Dirs, e.Name, pool.RepairOptions{})
	must(t, err)
	if !report.Sound || len(report.Losses) > 0 {
		t.Errorf("repaired: %+v", report)
	}
	s = e.Open(t)
	useNode(t, s, "one")
}

// duel has two create a pool of one name, which do not know of each other, in one volume group at once. One must win, and have all; it
// becomes the pool of e.
func duel(t *testing.T, e *pooltest.Env, spec pool.Spec) {
	t.Helper()
	both := []pool.Dirs{e.Dirs, pooltest.Dirs(t)}
	failed := make(chan error, len(both))
	for _, dirs := range both {
		go func() {
			err := pool.Create(pooltest.Context(t), dirs, spec)
			if err == nil {
				e.Dirs = dirs
			}
			failed <- err
		}()
	}
	var losers []error
	for range both {
		if err := <-failed; err != nil {
			losers = append(losers, err)
		}
	}
	if len(losers) != 1 || !errors.Is(losers[0], errs.ErrExists) {
		t.Fatalf("errors: %v", losers)
	}
}
