package pool_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Two who check a stopped pool on volumes activate them, and deactivate what they have activated, in any order.
func TestVolumesCheckedByTwo(t *testing.T) {
	e := pooltest.NewLVM(t, 128<<20, pool.Spec{DataSize: 64 << 20, BaseSize: 16 << 20})
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	dm, err := devmapper.Open()
	must(t, err)
	defer dm.Close()
	check := func(what string) {
		t.Helper()
		r, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
		if err != nil || len(r.Findings) > 0 || len(r.Unchecked) > 0 {
			t.Errorf("%s: %+v, %v", what, r, err)
		}
	}
	const activates, deactivates = `[ "$1 $4" = "lvchange -aey" ]`, `[ "$1 $4" = "lvchange -an" ]`
	const open = `n=5; for d in /dev/dm-*; do eval "exec $n<$d"; n=$((n+1)); done; `
	closed := filepath.Join(t.TempDir(), "closed")
	must(t, unix.Mkfifo(closed, 0o600))
	once(t, deactivates, open+fmt.Sprintf(`read x <%s >/dev/null 2>&1 & exec 5<&- 6<&-`, closed))
	check("the other still has them open at the end")
	must(t, os.WriteFile(closed, []byte("\n"), 0o600))
	pooltest.LVM(t, "vgchange", "-an", "testvg")

	once(t, activates, `"$lvm" "$@" && "$lvm" lvchange --config "$3" -an testvg; exit`)
	once(t, deactivates, open+`"$lvm" "$@" 5<&- 6<&-; exit`)
	check("the other deactivates what this one has activated, then closes what this one has just found open")
	if active, err := dm.List("LVM-"); err != nil || len(active) > 0 {
		t.Errorf("active: %v, %v", active, err)
	}
}

// A disk of the volume group that has nothing of the pool is missing: what became larger before reaches the pool all the same, and only more cannot be had.
func TestVolumesOfIncompleteGroup(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	disk, other := pooltest.NewLoopDisk(t, 96<<20, 0), pooltest.NewLoopDisk(t, 16<<20, 0)
	pooltest.LVM(t, "vgcreate", "-y", "testvg", disk.Path, other.Path)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	spec := onVolumes("testvg")
	spec.DataSize, spec.MetadataSize, spec.BaseSize = 32<<20, 4<<20, 16<<20
	must(t, pool.Create(ctx, e.Dirs, spec))
	pooltest.LVM(t, "lvextend", "-L", "+8m", "testvg/dmlayer-test-data", disk.Path)
	other.Detach(t)
	_, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Data: pool.Extent{Bytes: 4 << 20, More: true}})
	mustFail(t, err, errs.ErrDamaged)
	if st := state(t, e); *st.DataTotal != 40<<20 {
		t.Errorf("the pool has %d bytes", *st.DataTotal)
	}
	other.Attach(t)
	destroy(t, e)
	pooltest.LVM(t, "vgremove", "-f", "-y", "testvg")
}
