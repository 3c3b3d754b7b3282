package layer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// childOperations are what children of this test binary can be told to do.
var childOperations = pooltest.Operations{
	"node":     childNode,
	"open":     childOpen,
	"pool":     childPool,
	"child of": childOf,

	"die viewing":  childViewing(unix.SIGKILL),
	"stop viewing": childViewing(unix.SIGSTOP),
	"hammer":       childHammer,
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

// walk runs fn once for each point that an operation reaches, with fresh nodes each time. The first
// round, numbered 0, is not disturbed and tells how many there are. What the operation left is looked for
// when all of its rounds are over.
func walk(t *testing.T, fn func(t *testing.T, w *world, fs string, op operation, hit int) (points int)) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			w := newWorld(t, fs)
			for i, op := range nodeOperations(fs) {
				if fs == "xfs" && !op.onXFS {
					continue
				}
				t.Run(op.name, func(t *testing.T) {
					points := 1
					for hit := 0; hit <= points && !t.Failed(); hit++ {
						w.p = fmt.Sprintf("o%dh%d-", i, hit)
						op.prepare(t, w)
						must(t, pool.Start(pooltest.Context(t), w.e.Dirs, w.e.Name))
						if n := fn(t, w, fs, op, hit); hit == 0 {
							points = n
						}
						w.cleanUp(t)
					}
					must(t, w.e.Check(pooltest.Context(t)))
				})
			}
		})
	}
}

// TestKilledAnywhere kills each operation at each point that it reaches. Whoever comes next finds it done
// or not begun, can do it again, and finds nothing left over.
func TestKilledAnywhere(t *testing.T) {
	walk(t, func(t *testing.T, w *world, fs string, op operation, hit int) int {
		j := w.job(fs, op)
		if hit == 0 {
			c := pooltest.Run(t, j)
			c.Succeed()
			w.mustBe(t, op, true)
			return len(c.Hits())
		}
		j.Action, j.Hit = pooltest.ActionKill, hit
		c := pooltest.Run(t, j)
		hits := c.Hits()
		if err, killed := c.Wait(); !killed {
			t.Fatalf("not killed: %v, points %v", err, hits)
		}
		w.recovered(t, op, hits[len(hits)-1])
		return 0
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
func (op operation) traceless() bool { return op.name == "view" || op.name == "mount a layer" }

// recovered does what comes after a crash: opening the pool, looking, and doing the operation again.
func (w *world) recovered(t testing.TB, op operation, point string) {
	t.Helper()
	ctx := pooltest.Context(t)
	must(t, w.e.CheckLive(ctx))
	done, err := op.done(ctx, w)
	if err != nil {
		t.Fatalf("after a crash at %s: %v", point, err)
	}
	err = op.run(ctx, w.s, w.p)
	if done && op.again != nil {
		mustFail(t, err, op.again)
	} else if err != nil {
		t.Fatalf("again, after a crash at %s: %v", point, err)
	}
	w.mustBe(t, op, true)
}

// TestFailedAnywhere makes each point of each operation return an error. The operation must take back
// what it did, or be done, in the same process that goes on.
func TestFailedAnywhere(t *testing.T) {
	walk(t, func(t *testing.T, w *world, fs string, op operation, hit int) int {
		ctx := pooltest.Context(t)
		j := pooltest.Job{Action: pooltest.ActionFail, Hit: hit}
		if hit == 0 {
			j.Action = ""
		}
		var hits []string
		fault.Set(j.Hook(func(point string) { hits = append(hits, point) }))
		err := op.run(ctx, w.s, w.p)
		fault.Set(nil)
		if hit == 0 {
			must(t, err)
			w.mustBe(t, op, true)
			return len(hits)
		}
		if !errors.Is(err, pooltest.ErrInjected) {
			t.Fatalf("an error at the %d. point of %v is lost: %v", hit, hits, err)
		}
		w.recovered(t, op, fmt.Sprint(hits))
		return 0
	})
}
