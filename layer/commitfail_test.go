package layer_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// failingCommits makes every write to the pool's metadata fail from now on, by a flakey table in the place
// of the linear one. The function that it returns makes them work again, stops the pool and does what an
// administrator does after that: thin_check, and then takes the mark away that asks for it.
func (sc *scene) failingCommits() (repair func()) {
	t := sc.t
	t.Helper()
	testenv.Need(t, testenv.Flakey)
	must(t, pool.Start(sc.ctx, sc.e.Dirs, sc.e.Name))
	c := sc.s.Devmapper()
	st, err := pool.Inspect(sc.ctx, sc.e.Dirs, sc.e.Name)
	must(t, err)
	ref := devmapper.ByUUID(devmapper.UUID("DMLAYER-" + st.UUID + "-metadata"))
	tables, err := c.Table(ref)
	must(t, err)
	good := tables[0]
	device, _, _ := strings.Cut(good.Params, " ")
	load := func(target devmapper.Target) {
		t.Helper()
		must(t, c.Load(ref, devmapper.LoadOptions{}, target))
		_, err := c.Resume(ref, devmapper.ResumeOptions{})
		must(t, err)
	}
	load(devmapper.Target{Length: good.Length, Type: "flakey", Params: device + " 0 0 1000 1 error_writes"})
	return func() {
		t.Helper()
		load(good)
		must(t, pool.Stop(sc.ctx, sc.e.Dirs, sc.e.Name))
		loop, err := fsutil.Attach(sc.ctx, fsutil.LoopOptions{Path: sc.e.Metadata()})
		must(t, err)
		out, err := exec.CommandContext(sc.ctx, "thin_check", "--clear-needs-check-flag", loop.Path).CombinedOutput()
		must(t, errors.Join(loop.Close(), fsutil.Detach(sc.ctx, loop.Number)))
		if err != nil {
			t.Fatalf("thin_check: %v\n%s", err, out)
		}
	}
}

// A pool message returns 0 and was not committed, also with a stop, a repair and a start in between: no
// record without a thin device.
func TestInterleaving15NotCommitted(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		sc.snapshot(t)
		for _, op := range []string{"snapshot of mounted snapshot", "commit", "fill", "reset"} {
			t.Run(op, func(t *testing.T) {
				sc := &scene{world: sc.world, t: t, fs: sc.fs, ctx: pooltest.Context(t), ops: sc.ops}
				repair := sc.failingCommits()
				err := sc.ops[op].run(sc.ctx, sc.s, "x-")
				t.Logf("it said: %v", err)
				if err == nil {
					t.Error("succeeded")
				}
				sc.alive()
				repair()
				sc.open()
				wantFiles(t, sc.s, "x-s", snapFiles)
				must(t, sc.e.CheckLive(sc.ctx))
				must(t, sc.e.Check(sc.ctx))
			})
		}
		// The message and the look at the status are under one lock: an administrator's stop comes after.
		a := pooltest.Start(t, pooltest.Job{Op: "child of", Dirs: sc.e.Dirs, Pool: sc.e.Name, Args: []string{"x-c", "top"},
			Action: pooltest.ActionStop, Point: "layer.create.id-taken"})
		a.WaitStopped()
		repair := sc.failingCommits()
		a.Continue()
		if err, killed := a.Wait(); err == nil || killed {
			t.Errorf("%v, killed %v", err, killed)
		}
		repair()
		must(t, sc.e.Check(sc.ctx))
	})
}

// A layer in the middle of a chain was not committed, what it was filled with or the copy that was to become
// it: the layer before it stays, and neither that one nor one after it is recorded.
func TestChainNotCommitted(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		sc.snapshot(t)
		for _, at := range []string{"layer.fill.filled", "layer.freeze.suspended"} {
			if at == "layer.freeze.suspended" && sc.fs == "xfs" {
				continue // has no copies
			}
			t.Run(at, func(t *testing.T) {
				sc := &scene{world: sc.world, t: t, fs: sc.fs, ctx: pooltest.Context(t), ops: sc.ops}
				chain := &slowChain{names: []string{"x-1", "x-2", "x-3"}}
				must(t, chain.start(sc.ctx, sc.s, sc.e))
				var repair func()
				fault.Set(func(point string) error {
					if point == at && repair == nil {
						repair = sc.failingCommits()
					}
					return nil
				})
				err := chain.next(sc.ctx, sc.s, sc.e)
				fault.Set(nil)
				t.Logf("it said: %v", err)
				mustFail(t, err, layer.ErrDamaged)
				sc.alive()
				repair()
				sc.open()
				must(t, wantChain(sc.ctx, sc.s, "x-1"))
				for _, name := range []string{"x-2", "x-3"} {
					if _, err := sc.s.Get(sc.ctx, name); !errors.Is(err, layer.ErrNotFound) {
						t.Errorf("%s: %v", name, err)
					}
				}
				must(t, sc.e.CheckLive(sc.ctx))
				must(t, sc.s.Remove(sc.ctx, "x-1"))
			})
		}
	})
}

// alive checks that what a pool holds that cannot commit any more can still be read.
func (sc *scene) alive() {
	sc.t.Helper()
	if _, err := sc.s.List(sc.ctx); err != nil {
		sc.t.Errorf("list: %v", err)
	}
	s, err := layer.Open(sc.ctx, sc.e.Config())
	if err != nil {
		if !errors.Is(err, layer.ErrDamaged) {
			sc.t.Errorf("open: %v", err)
		}
		return
	}
	defer s.Close()
	if err := sc.holds(sc.ctx, "top", topFiles); err != nil {
		sc.t.Errorf("a layer of a pool that cannot commit: %v", err)
	}
	_, err = s.CreateSnapshot(sc.ctx, "x-more", layer.SnapshotOptions{Parent: "top"})
	mustFail(sc.t, err, layer.ErrDamaged)
}

// delete returns 0, its commit failed, the pool is repaired: no device without a record or tombstone.
func TestInterleaving27DeleteNotCommitted(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		sc.snapshot(t)
		repair := sc.failingCommits()
		if err := sc.s.Remove(sc.ctx, "x-s"); err == nil {
			t.Error("succeeded")
		}
		repair()
		must(t, sc.e.Check(sc.ctx))
		if _, err := sc.s.Get(sc.ctx, "x-s"); !errors.Is(err, layer.ErrNotFound) {
			t.Errorf("the tombstone was durable, and yet: %v", err)
		}
		if thins, err := sc.e.Thins(sc.ctx); err != nil || len(thins) != 4 { // label, template, base, top
			t.Errorf("thin devices %v, %v", thins, err)
		}
	})
}
