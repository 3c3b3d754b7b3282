package pool_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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

	must(t, pool.Create(ctx, e.Dirs, onVolumes("testvg")))
	if st := state(t, e); *st.DataTotal < 200<<20 || st.DataDevice == "" || st.MetadataDevice == "" {
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
	must(t, e.Check(ctx)) // stops it, and wants the volumes to be inactive

	// After a reboot: activated by somebody or not, on another device, the group with another name.
	pooltest.LVM(t, "vgchange", "-ay", "testvg")
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	pooltest.LVM(t, "vgchange", "-an", "testvg")
	detach()
	mustFail(t, pool.Start(ctx, e.Dirs, e.Name), errs.ErrDamaged)
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
