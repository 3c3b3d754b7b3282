package layer_test

import (
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func wantLost(t *testing.T, e *pooltest.Env, after string, want bool) {
	t.Helper()
	for _, name := range []string{"cut", "kid"} {
		if l := node(t, e, name).Lost; (l != nil) != want {
			t.Errorf("after %s: %s has lost %v, want %v", after, name, l, want)
		}
	}
	if _, err := e.Node(pooltest.Context(t), ".missing-1"); (err == nil) != want || err != nil && !errors.Is(err, layer.ErrNotFound) {
		t.Errorf("after %s: template set aside: %v, want %v", after, err, want)
	}
}

// cutTemplate is cutPool, with the template damaged, too. What it garbles comes back whole with the next turn.
func cutTemplate(t *testing.T) (e *pooltest.Env, turn func()) {
	e = cutPool(t)
	m := stoppedMetadata(t, e)
	template, cut := m.root(1), m.child(m.root(node(t, e, "cut").ID), 1)
	m.garble(template)
	m.save()
	return e, func() {
		t.Helper()
		m := stoppedMetadata(t, e)
		m.garble(template)
		m.garble(cut)
		m.save()
	}
}

func removeCut(t *testing.T, e *pooltest.Env) {
	t.Helper()
	s := e.Open(t)
	for _, name := range []string{"kid", "cut"} {
		must(t, s.Remove(pooltest.Context(t), name))
	}
}

// failedRepairs are repairs that end before they have put anything in its place: they mark nothing for good.
func failedRepairs(t *testing.T, e *pooltest.Env) {
	t.Helper()
	for _, point := range []string{"pool.repair.marked", "pool.repair.kept"} {
		died := dieAt(point)
		_, err := pool.RepairMetadata(pooltest.Context(t), e.Dirs, e.Name, pool.RepairOptions{})
		fault.Set(nil)
		if !errors.Is(err, died) {
			t.Fatal(err)
		}
		wantLost(t, e, point, false)
	}
}

// The marks of a repair that was killed stand if its metadata is in the place of the old, and only then: also where the superblock does not tell.
func TestMarksOfKilledRepair(t *testing.T) {
	e, turn := cutTemplate(t)
	ctx := pooltest.Context(t)
	job := pooltest.Job{Op: "repair", Dirs: e.Dirs, Pool: e.Name}
	settled := func(after string, want bool) {
		t.Helper()
		wantLost(t, e, after, want)
		must(t, e.Tamper(ctx, func(tx *metadata.Tx) error {
			p, err := tx.Pool()
			if p.Repair != nil {
				t.Errorf("after %s: not settled: %+v", after, p.Repair)
			}
			return err
		}))
	}
	superblock := func() {
		m := stoppedMetadata(t, e)
		m.garble(0)
		m.save()
	}
	kill := func(point string) {
		t.Helper()
		job.Point = point
		pooltest.RunKilled(t, job)
		wantLost(t, e, point, true) // nobody may see the repaired metadata without them
	}
	kill("pool.repair.kept")
	superblock()
	if err := pool.Start(ctx, e.Dirs, e.Name); err == nil {
		t.Error("it starts without a superblock")
	}
	settled("a start that failed", false)
	superblock()

	// What could not be read for a while, and can be again, condemns nothing.
	kill("pool.repair.marked")
	turn()
	if r := repair(t, e); !r.Sound || len(r.Losses) > 0 {
		t.Errorf("sound metadata: %+v", r)
	}
	settled("a repair of sound metadata", false)
	s := e.Open(t)
	makeSnapshot(t, s, "new", "cut")
	must(t, s.Remove(ctx, "new"))

	turn()
	kill("pool.repair.swapped")
	superblock()
	if err := pool.Start(ctx, e.Dirs, e.Name); err == nil {
		t.Error("it starts without a superblock")
	}
	settled("a start of the repaired that failed", true)
	superblock()
	stamp := stoppedMetadata(t, e).superblock().UUID
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	settled("a start of the repaired", true)
	wantFound(t, e, "node-loss cut", "node-loss kid")
	if sb := stoppedMetadata(t, e).superblock(); sb.UUID != stamp || stamp == [16]byte{} {
		t.Errorf("the kernel has made %x of the UUID %x", sb.UUID, stamp)
	}
	removeCut(t, e)
}
