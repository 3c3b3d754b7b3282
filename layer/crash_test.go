package layer_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// childOperations are what children of this test binary can be told to do.
var childOperations = pooltest.Operations{
	"node":      childNode,
	"open":      childOpen,
	"exhausted": childExhausted,
	"pool":      childPool,
	"volumes":   childVolumes,
	"child of":  childOf,

	"die viewing":  childViewing(unix.SIGKILL),
	"stop viewing": childViewing(unix.SIGSTOP),
	"hammer":       childHammer,
	"load":         childLoad,
	"repair":       childRepair,
	"device":       childDevice,
}

// childNode runs one of nodeOperations: Args are the file system, its name and the prefix.
func childNode(ctx context.Context, j pooltest.Job) error {
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	defer s.Close()
	for _, op := range nodeOperations(j.Args[0]) {
		if op.name == j.Args[1] {
			return op.run(ctx, s, j.Args[2])
		}
	}
	return fmt.Errorf("no operation %q", j.Args[1])
}

func childOpen(ctx context.Context, j pooltest.Job) error {
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	return s.Close()
}

func (w *world) job(fs string, op operation) pooltest.Job {
	return pooltest.Job{Op: "node", Dirs: w.e.Dirs, Pool: w.e.Name, Args: []string{fs, op.name, w.p}}
}

// A place is a hit of a point in an operation.
type place struct {
	point string
	hit   int
}

// places returns where to interrupt an operation that was seen to reach these points: at the first and at
// the last hit of each.
func places(hits []string) (list []place) {
	count := map[string]int{}
	for _, point := range hits {
		if count[point]++; count[point] == 1 {
			list = append(list, place{point, 1})
		}
	}
	for _, p := range list {
		if n := count[p.point]; n > 1 {
			list = append(list, place{p.point, n})
		}
	}
	return list
}

// walk does each operation undisturbed once, and then calls interrupt for each place in it, with fresh
// nodes each time. What the operation left is looked for when all of its rounds are over. The second file system
// has the first hits only, but in the long form.
func walk(t *testing.T, interrupt func(t *testing.T, w *world, fs string, op operation, at place)) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			w := newWorld(t, fs)
			for i, op := range nodeOperations(fs) {
				if fs == "xfs" && !op.onXFS {
					continue
				}
				t.Run(op.name, func(t *testing.T) {
					ctx := pooltest.Context(t)
					begin := func(round int) {
						w.p = fmt.Sprintf("o%dr%d-", i, round)
						op.prepare(t, w)
						must(t, pool.Start(ctx, w.e.Dirs, w.e.Name))
					}
					begin(0)
					c := pooltest.Run(t, w.job(fs, op))
					c.Succeed()
					w.mustBe(t, op, true)
					w.cleanUp(t)
					all := places(c.Hits())
					if fs != fileSystems[0] && !thorough() {
						all = slices.DeleteFunc(all, func(at place) bool { return at.hit > 1 })
					}
					for k, at := range all {
						begin(k + 1)
						interrupt(t, w, fs, op, at)
						w.cleanUp(t)
					}
					must(t, w.e.Check(ctx))
				})
			}
		})
	}
}

// TestKilledAnywhere kills each operation at each point that it reaches. Whoever comes next finds it done
// or not begun, can do it again, and finds nothing left over.
func TestKilledAnywhere(t *testing.T) {
	walk(t, func(t *testing.T, w *world, fs string, op operation, at place) {
		j := w.job(fs, op)
		j.Action, j.Point, j.Hit = pooltest.ActionKill, at.point, at.hit
		c := pooltest.Run(t, j)
		if err, killed := c.Wait(); !killed && (err != nil || slices.Contains(c.Hits(), at.point) && at.hit == 1) {
			t.Fatalf("not killed at %v: %v, points %v", at, err, c.Hits())
		}
		w.recovered(t, op, at)
	})
}

// mustBe checks that the operation was done, unless it is one that leaves no trace.
func (w *world) mustBe(t testing.TB, op operation, want bool) {
	t.Helper()
	done, err := op.done(pooltest.Context(t), w)
	must(t, err)
	if done != want && !op.traceless() {
		t.Fatalf("%s done: %v, want %v", op.name, done, want)
	}
}

// traceless operations put everything back themselves.
func (op operation) traceless() bool {
	return op.name == "view" || op.name == "mount a layer" || op.name == "measure" || op.name == "trim free"
}

// recovered does what comes after a crash: opening the pool, looking, and doing the operation again.
func (w *world) recovered(t testing.TB, op operation, at place) {
	t.Helper()
	ctx := pooltest.Context(t)
	if err := w.e.CheckLive(ctx); err != nil {
		t.Fatalf("after a crash at %v: %v", at, err)
	}
	done, err := op.done(ctx, w)
	if err != nil {
		t.Fatalf("after a crash at %v: %v", at, err)
	}
	err = op.run(ctx, w.s, w.p)
	if done && op.again != nil {
		mustFail(t, err, op.again)
	} else if err != nil {
		t.Fatalf("again, after a crash at %v: %v", at, err)
	}
	w.mustBe(t, op, true)
}

// TestFailedAnywhere makes each point of each operation return an error. The operation must take back
// what it did, or be done, in the same process that goes on.
func TestFailedAnywhere(t *testing.T) {
	walk(t, func(t *testing.T, w *world, fs string, op operation, at place) {
		ctx := pooltest.Context(t)
		j := pooltest.Job{Action: pooltest.ActionFail, Point: at.point, Hit: at.hit}
		var hits []string
		fault.Set(j.Hook(func(point string) { hits = append(hits, point) }))
		err := op.run(ctx, w.s, w.p)
		fault.Set(nil)
		if slices.Contains(hits, at.point) && at.hit == 1 && !errors.Is(err, pooltest.ErrInjected) {
			t.Fatalf("an error at %v is lost: %v", at, err)
		}
		w.recovered(t, op, at)
	})
}
