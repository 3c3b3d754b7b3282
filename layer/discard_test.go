package layer_test

import (
	"context"
	"errors"
	"os"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// onHost is what a file takes on the host's file system, in bytes.
func onHost(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

// What only a removed node had goes back to the host, what others have too stays.
func TestRemoveGivesBack(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s, ctx := e.Open(t), pooltest.Context(t)
			for _, name := range makeFamily(t, s) {
				before, i := onHost(t, e.Data()), measured(t, s)[name]
				must(t, s.Remove(ctx, name))
				back := before - onHost(t, e.Data())
				t.Logf("%s: exclusive %d, given back %d", name, *i.Exclusive, back)
				if want := *i.Exclusive; want >= 1<<20 && back < want || back > want+1<<20 {
					t.Errorf("%s: %d given back, %d were its own", name, back, want)
				}
			}
		})
	}
}

// A chain of layers gives back as it took, from its end on; a pool that does not pass discards down gives nothing back and
// removes all the same.
func TestRemoveByDiscardMode(t *testing.T) {
	for _, mode := range []string{"passdown", "nopassdown", "ignore"} {
		t.Run(mode, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{Discard: mode})
			s, ctx := e.Open(t), pooltest.Context(t)
			makeLayer(t, s, "base", "", nil)
			empty, used := onHost(t, e.Data()), dataUsed(t, e)
			fill := func(_ context.Context, w *layer.LayerWriter) error { writeMiB(t, w.Root(), "f", 5); return nil }
			_, err := s.CreateLayers(ctx, []layer.NewLayer{
				{Name: "l1", Options: layer.LayerOptions{Parent: "base"}, Fill: fill}, {Name: "l2", Fill: fill}, {Name: "l3", Fill: fill},
			})
			must(t, err)
			full := onHost(t, e.Data())
			removed, err := s.Prune(ctx, false)
			must(t, err)
			if len(removed) != 4 {
				t.Errorf("removed %q", removed)
			}
			left := onHost(t, e.Data())
			if gave := left < empty+2<<20; gave != (mode == "passdown") {
				t.Errorf("%d on the host at first, %d with layers, %d at the end", empty, full, left)
			}
			if now := dataUsed(t, e); now > used {
				t.Errorf("%d used, %d at first", now, used)
			}
		})
	}
}

// A is removing a node and is stopped in the middle of discarding it. Others measure, make and remove nodes of the same parent;
// then A goes on, or is killed and somebody else finishes it.
func TestDiscardTogether(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, end := range []string{"goes on", "is killed"} {
			t.Run(end, func(t *testing.T) {
				sc := &scene{world: sc.world, t: t, fs: sc.fs, ctx: pooltest.Context(t), ops: sc.ops}
				before := onHost(t, sc.e.Data())
				a := sc.stopped("remove what has much", "pool.discard.step")
				full := onHost(t, sc.e.Data())
				measured(t, sc.s)
				makeSnapshot(t, sc.s, "other", "base")
				writeMiB(t, mount(t, sc.s, "other"), "f", 2)
				unmount(t, sc.s, "other")
				must(t, sc.s.Remove(sc.ctx, "other"))
				if end == "goes on" {
					a.Continue()
					a.Succeed()
				} else {
					a.Kill()
				}
				sc.open()
				must(t, sc.e.CheckLive(sc.ctx))
				if left := onHost(t, sc.e.Data()); left > before+2<<20 {
					t.Errorf("%d on the host before, %d in the middle, %d at the end", before, full, left)
				}
			})
		}
	})
}

// A, measuring, has a metadata snapshot, by which all blocks are shared. B, removing a node, waits until A is done or dead, so that what
// it discards is given back.
func TestDiscardWaitsForReader(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		before := onHost(t, sc.e.Data())
		sc.ops["remove what has much"].prepare(t, sc.world)
		a := sc.start("measure", pooltest.ActionStop, "pool.metadata.reserved")
		a.WaitStopped()
		b := sc.start("remove what has much", "", "")
		impatient, cancel := context.WithCancel(sc.ctx)
		cancel()
		if err := sc.s.Measure(impatient, nil); !errors.Is(err, context.Canceled) {
			t.Errorf("measured while another one does: %v", err)
		}
		a.Kill()
		b.Succeed()
		must(t, sc.e.CheckLive(sc.ctx))
		if left := onHost(t, sc.e.Data()); left > before+2<<20 {
			t.Errorf("%d on the host before, %d at the end", before, left)
		}
	})
}

// A removal that is interrupted after its commit point leaves the rest to the next open.
func TestRemoveInterrupted(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		before := onHost(t, sc.e.Data())
		sc.ops["remove what has much"].prepare(t, sc.world)
		ctx, cancel := context.WithCancel(sc.ctx)
		fault.Set(func(point string) error {
			if point == "layer.remove.tombstone" {
				cancel()
			}
			return nil
		})
		err := sc.s.Remove(ctx, sc.name("s"))
		fault.Set(nil)
		mustFail(t, err, context.Canceled)
		if _, err := sc.s.Get(sc.ctx, sc.name("s")); !errors.Is(err, layer.ErrNotFound) {
			t.Errorf("the node is there: %v", err)
		}
		sc.open()
		must(t, sc.e.CheckLive(sc.ctx))
		if left := onHost(t, sc.e.Data()); left > before+2<<20 {
			t.Errorf("%d on the host before, %d at the end", before, left)
		}
	})
}
