package layer_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/logwrites"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestPowerCutInRenewal cuts the power inside of a renewal: at each of its points, right after flushes, and while one was under way. The
// pool is in its old life or its new one then, and has the same nodes, side files and contents in both.
func TestPowerCutInRenewal(t *testing.T) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{disk}}
	must(t, pool.Create(pooltest.Context(t), dirs, smallPool))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name) }) // of a test that failed
	st.mark("ack-create")
	all := script()
	var steps []step
	for _, s := range all {
		if slices.Contains([]string{"base", "top", "s1", "write", "commit"}, s.name) {
			delete(s.want, "c1")
			delete(s.want, "c2")
			delete(s.want, "c3")
			steps = append(steps, s)
		}
	}
	have := steps[len(steps)-1].want
	renew := func(ctx context.Context, _ *layer.Store, e *pooltest.Env) error {
		_, err := pool.Renew(ctx, e.Dirs, e.Name, nil)
		return err
	}
	steps = append(steps, step{"renew", renew, have})
	st.record(t, steps)
	must(t, disk.Remove())
	r := disk.Replay()
	first := slices.IndexFunc(r.Entries, func(e logwrites.Entry) bool { return e.Mark == "ack-commit" }) + 1
	rnd := rand.New(rand.NewPCG(5, 0))
	cut := func(n int, more []logwrites.Part) {
		r.CutWith(n, more, func() {
			count, where := acked(r, n)
			st.check(t, where, count, steps)
		})
	}
	cuts := 0
	for i, e := range r.Entries[first:] {
		n := first + i + 1
		flush := e.Flags&(logwrites.Flush|logwrites.FUA) != 0
		if strings.HasPrefix(e.Mark, "at-pool.renew") || strings.HasPrefix(e.Mark, "ack-") || flush && rnd.IntN(40) == 0 {
			cuts++
			cut(n, nil)
		}
		if strings.HasPrefix(e.Mark, "at-pool.renew") {
			if more := logwrites.Unflushed(r.Entries, n, rnd); len(more) > 0 {
				cuts++
				cut(n, more)
			}
		}
	}
	t.Logf("%d entries, %d of them in the renewal, %d cuts", len(r.Entries), len(r.Entries)-first, cuts)
	if cuts < 8 {
		t.Error("too few cuts")
	}
}
