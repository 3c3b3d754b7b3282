package layer_test

import (
	"context"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// playCut records a script, cuts the power wherever one of the marks was made, and checks each time that all that was acknowledged is there and nothing
// half. at is called before anybody has opened what a cut left, and what it returns when the pool has been opened, checked and stopped again.
func playCut(t *testing.T, steps []step, marks []string, at func(t *testing.T, e *pooltest.Env, mark string) (then func())) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{disk}}
	must(t, pool.Create(pooltest.Context(t), dirs, smallPool))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name) }) // of a test that failed
	st.mark("ack-create")
	st.record(t, steps)
	must(t, disk.Remove())
	r := disk.Replay()
	cut := map[string]int{}
	for i, entry := range r.Entries {
		count, where := acked(r, i+1)
		if !slices.Contains(marks, entry.Mark) || count < 0 {
			continue
		}
		cut[entry.Mark]++
		r.CutAt(i+1, func() {
			then := at(t, st.e, entry.Mark)
			st.check(t, where, count, steps)
			then()
		})
	}
	for _, mark := range marks {
		if cut[mark] == 0 {
			t.Errorf("no cut at %s", mark)
		}
	}
	t.Logf("%d entries, cuts %v", len(r.Entries), cut)
}

// superblockOf reads the metadata of a pool that does not run, and the thin ids there.
func superblockOf(t testing.TB, e *pooltest.Env) (sb thinmeta.Superblock, ids []uint64) {
	t.Helper()
	f, err := os.Open(e.Metadata())
	must(t, err)
	defer f.Close()
	m, err := thinmeta.Open(f, thinmeta.Options{})
	must(t, err)
	for d, err := range m.Devices(pooltest.Context(t)) {
		must(t, err)
		ids = append(ids, d.ID)
	}
	return m.Superblock(), ids
}

// madeOfBase are the first two steps of script: a layer, and a snapshot of it.
func madeOfBase() []step {
	return []step{script()[0], {
		name: "s1", want: contents{"base": "a=1 (side file)", "s1": "a=1"},
		do: func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
			_, err := s.CreateSnapshot(ctx, "s1", layer.SnapshotOptions{Parent: "base"})
			return err
		},
	}}
}

// Cut after create_snap, before the record: the id is gone after recovery.
func TestInterleaving08CutBeforeRecord(t *testing.T) {
	playCut(t, madeOfBase(), []string{"at-layer.create.thin-created"}, func(t *testing.T, e *pooltest.Env, _ string) func() {
		_, before := superblockOf(t, e)
		return func() {
			if _, after := superblockOf(t, e); len(after) != len(before)-1 {
				t.Errorf("thin ids %v after the cut, %v after recovery", before, after)
			}
		}
	})
}

// Cut while a window of ids is being reserved: store and pool pair again.
func TestInterleaving09CutInReservation(t *testing.T) {
	steps := madeOfBase()
	made := steps[1].do
	steps[1].do = func(ctx context.Context, s *layer.Store, e *pooltest.Env) error {
		if err := forgetCursor(e); err != nil {
			return err
		}
		return made(ctx, s, e)
	}
	playCut(t, steps, []string{"at-pool.reserve.stored", "at-pool.reserve.bumped"}, func(t *testing.T, e *pooltest.Env, mark string) func() {
		if paired := transactionsAgree(t, e); paired != strings.HasSuffix(mark, "bumped") {
			t.Errorf("%s: store and pool of one transaction: %v", mark, paired)
		}
		return func() {
			if !transactionsAgree(t, e) {
				t.Errorf("%s: store and pool are of two transactions after recovery", mark)
			}
		}
	})
}

// transactionsAgree compares the transaction ids of the records and of a pool that does not run.
func transactionsAgree(t testing.TB, e *pooltest.Env) bool {
	t.Helper()
	p, err := pool.Open(pooltest.Context(t), e.Dirs, e.Name, nil)
	must(t, err)
	defer p.Close()
	sb, _ := superblockOf(t, e)
	return sb.TransactionID == p.Record().TransactionID
}

// A VM closes its raw disk without a flush; commit turns the disk itself into a layer; cut: the layer has what the VM wrote.
func TestInterleaving28CutAfterMove(t *testing.T) {
	steps := []step{
		{name: "disk", want: contents{"vm": ""}, do: func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
			_, err := s.CreateSnapshot(ctx, "vm", layer.SnapshotOptions{})
			return err
		}},
		{name: "move", want: contents{"image": "v=" + string(pattern)}, do: writeAsVMAndMove},
	}
	playCut(t, steps, []string{"at-layer.commit.flushed-in-place", "ack-move"}, func(*testing.T, *pooltest.Env, string) func() { return func() {} })
}
