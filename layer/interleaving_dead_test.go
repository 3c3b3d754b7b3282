package layer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// pool create is killed at every step: TestPoolKilledAnywhere. Here it is A that lives, and B that wants
// the same pool.
func TestInterleaving17CreateTwice(t *testing.T) {
	op := poolOperations[0]
	for _, point := range []string{"pool.create.recorded", "pool.create.activated", "pool.label.active"} {
		t.Run(point, func(t *testing.T) {
			e := op.prepare(t)
			ctx := pooltest.Context(t)
			j := pooltest.Job{Op: "pool", Dirs: e.Dirs, Args: []string{"create"}, Action: pooltest.ActionStop, Point: point}
			a := pooltest.Start(t, j)
			a.WaitStopped()
			_, err := pool.Inspect(ctx, e.Dirs, e.Name)
			mustFail(t, err, layer.ErrBusy)
			b := pooltest.Start(t, pooltest.Job{Op: "pool", Dirs: e.Dirs, Args: []string{"create"}})
			a.Continue()
			a.Succeed()
			fails(t, b, layer.ErrExists)
			must(t, e.Check(ctx))
			takeDown(t, e)
		})
	}
}

// The process that attached the loop devices is killed; the pool is stopped and started by another: loops
// are found again by their file, none leaks, none is attached twice.
func TestInterleaving20LoopsOfTheDead(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		must(t, pool.Stop(sc.ctx, sc.e.Dirs, sc.e.Name))
		for _, point := range []string{"pool.start.attached", "pool.start.metadata", "pool.start.activated", "pool.start.paired", "pool.label.active"} {
			pooltest.RunKilled(t, pooltest.Job{Op: "open", Dirs: sc.e.Dirs, Pool: sc.e.Name, Point: point})
			sc.open()
			for _, file := range []string{sc.e.Data(), sc.e.Metadata()} {
				loops, err := fsutil.FindLoops(file)
				must(t, err)
				if len(loops) != 1 {
					t.Errorf("after a crash at %s, %s is attached to %v", point, file, loops)
				}
			}
			must(t, sc.e.Check(sc.ctx)) // stops it, and looks for loops
		}
	})
}

// A process that is killed with its working device suspended leaves a frozen file system, which nobody sees
// and which keeps the device open: the pool can be stopped and destroyed all the same.
func TestStopAfterDeathInChain(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		for _, point := range []string{"layer.freeze.suspended", "layer.freeze.snapped", "layer.freeze.resumed"} {
			sc.killed("chain", point)
			must(t, pool.Stop(sc.ctx, sc.e.Dirs, sc.e.Name))
			sc.open()
			sc.mustBe(t, sc.ops["chain"], false)
			sc.cleanUp(t)
		}
	})
}

// A start that died before it had compared pool and label is done again, not believed.
func TestStartOfTheDeadIsNotBelieved(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		must(t, pool.Stop(sc.ctx, sc.e.Dirs, sc.e.Name))
		data, err := os.OpenFile(sc.e.Data(), os.O_RDWR, 0)
		must(t, err)
		defer data.Close()
		good := make([]byte, 64<<10) // the label's block is the first that was written
		_, err = data.ReadAt(good, 0)
		must(t, err)
		_, err = data.WriteAt(make([]byte, len(good)), 0)
		must(t, errors.Join(err, data.Sync()))
		pooltest.RunKilled(t, pooltest.Job{Op: "open", Dirs: sc.e.Dirs, Pool: sc.e.Name, Point: "pool.start.activated"})
		_, err = layer.Open(sc.ctx, sc.e.Config())
		mustFail(t, err, layer.ErrDamaged)
		_, err = data.WriteAt(good, 0)
		must(t, errors.Join(err, data.Sync()))
		sc.open()
	})
}

// A is unpacking into id 17; B uses up the window and the next one; A is killed: 17 is still found and
// deleted.
func TestInterleaving21WindowUsedUp(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		a := sc.stopped("fill", "layer.fill.mounted")
		for range 2*64 + 1 {
			makeSnapshot(t, sc.s, "x-b", "base")
			must(t, sc.s.Remove(sc.ctx, "x-b"))
		}
		sc.open()
		a.Kill()
		must(t, sc.e.CheckLive(sc.ctx))
		if thins, err := sc.e.Thins(sc.ctx); err != nil || len(thins) != 4 { // label, template, base, top
			t.Fatalf("thin devices %v, %v", thins, err)
		}
	})
}

// B, recovering, has read that 17 is in flight; A records 17 and lets go; B takes the lock: B reads again
// and leaves 17 alone.
func TestInterleaving22RecordedMeanwhile(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		a := sc.stopped("fill", "layer.fill.flushed")
		b := pooltest.Start(t, pooltest.Job{Op: "open", Dirs: sc.e.Dirs, Pool: sc.e.Name, Action: pooltest.ActionStop, Point: "layer.recover.candidates"})
		b.WaitStopped()
		a.Continue()
		a.Succeed()
		b.Continue()
		b.Succeed()
		sc.mustBe(t, sc.ops["fill"], true)
	})
}

// A is killed between the store's and the pool's bump; B, running all the time, reserves the next window;
// then somebody opens: paired, nothing refused.
func TestInterleaving23BumpCutShort(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		for i, point := range []string{"pool.reserve.stored", "pool.reserve.bumped", "pool.pair.rolled"} {
			if point == "pool.pair.rolled" {
				sc.killed("window", "pool.reserve.stored")
				pooltest.RunKilled(t, pooltest.Job{Op: "open", Dirs: sc.e.Dirs, Pool: sc.e.Name, Point: point})
			} else {
				sc.killed("window", point)
			}
			loseCursor(t, sc.e)
			makeSnapshot(t, sc.s, fmt.Sprintf("x-b%d", i), "base")
			must(t, sc.e.CheckLive(sc.ctx))
		}
	})
}

// A reserves the first window since the cursor was lost, and is stopped before there is a cursor again; B, which reaps, looks for what is in flight. B does not take the ids of the
// window for gone: one that a third process has made and not recorded, when it is killed, is cleaned up.
func TestInterleaving29ReservedWithoutCursor(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		b, err := layer.Open(sc.ctx, sc.e.Config())
		must(t, err)
		a := sc.stopped("window", "pool.reserve.stored")
		looked := make(chan error, 1)
		go func() {
			_, err := b.Reap(sc.ctx, nil)
			looked <- err
		}()
		for waiting := false; !waiting && len(looked) == 0; { // for the reservation
			locks, err := os.ReadFile("/proc/locks")
			must(t, err)
			waiting = bytes.Contains(locks, []byte("-> "))
		}
		a.Continue()
		a.Succeed()
		must(t, <-looked)
		sc.killed("fill", "layer.create.thin-created")
		makeSnapshot(t, b, "x-later", "base")
		must(t, b.Close())
		must(t, sc.e.CheckLive(sc.ctx))
	})
}

// A is killed with S suspended; B, running all the time, mounts, unmounts or grows S: B resumes it first;
// nobody hangs.
func TestInterleaving24SuspendedByTheDead(t *testing.T) {
	uses := map[string]func(sc *scene) error{
		"mount": func(sc *scene) error {
			dir := sc.t.TempDir()
			_, err := sc.s.Mount(sc.ctx, "x-s", dir, layer.MountOptions{})
			return errors.Join(err, sc.s.Unmount(sc.ctx, dir))
		},
		"unmount":  func(sc *scene) error { return sc.s.Unmount(sc.ctx, "x-s") },
		"resize":   func(sc *scene) error { return sc.s.Resize(sc.ctx, "x-s", grown) },
		"snapshot": func(sc *scene) error { return sc.ops["snapshot of mounted snapshot"].run(sc.ctx, sc.s, sc.p) },
	}
	play(t, func(t *testing.T, sc *scene) {
		for name, use := range uses {
			sc.killed("commit mounted", "layer.freeze.suspended")
			if err := use(sc); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if name != "unmount" && sc.device("x-s").Suspended {
				t.Errorf("%s left it suspended", name)
			}
			sc.cleanUp(t)
			must(t, sc.e.CheckLive(sc.ctx))
		}
	})
}

// A commits S, sees it inactive and does not suspend; B activates and mounts S, its user writes: the copy
// is not torn.
func TestInterleaving25MountedMeanwhile(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		a := sc.stopped("commit", "layer.create.id-taken")
		b := sc.start("mount", "", "")
		a.Continue()
		a.Succeed()
		b.Succeed()
		must(t, writeFiles(sc.e.MountPoint("x-s"), map[string]string{"late": "after the commit"}))
		sc.mustBe(t, operation{name: "commit", done: made("l", snapFiles)}, true)
	})
}

// B finds no claim on a node and removes its device; A claims it and hands out the path in between: never
// a handed-out path without a device.
func TestInterleaving26ClaimedMeanwhile(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		b := sc.stopped("unmount", "layer.release.unclaimed")
		a := sc.start("attach", "", "")
		b.Continue()
		b.Succeed()
		a.Succeed()
		sc.handedOut("x-s")
		must(t, sc.s.Detach(sc.ctx, "x-s"))
		sc.cleanUp(t)
		// The other way round: A has claimed and has no device yet.
		a = sc.stopped("attach", "layer.claim.made")
		sc.open()
		a.Continue()
		a.Succeed()
		sc.open()
		sc.handedOut("x-s")
		// Those who share a claimed device leave it when they are done with it.
		_, err := sc.s.Attach(sc.ctx, "top", true)
		must(t, err)
		must(t, sc.holds(sc.ctx, "top", topFiles))
		mount(t, sc.s, "top")
		unmount(t, sc.s, "top")
		sc.open()
		sc.handedOut("top")
		must(t, sc.s.Detach(sc.ctx, "top"))
	})
}

// handedOut checks that the path of an attached node leads to its device.
func (sc *scene) handedOut(name string) {
	sc.t.Helper()
	f, err := os.Open(filepath.Join(sc.e.Dirs.Run, "dev", sc.e.Name, name))
	must(sc.t, err)
	defer f.Close()
	dev, err := fsutil.DevNumOfFile(f)
	must(sc.t, err)
	if want := sc.device(name).Dev; dev.Major != want.Major || dev.Minor != want.Minor {
		sc.t.Errorf("the path leads to %v, the device is %v", dev, want)
	}
}

// A parent that this process remembers is removed, and another made under its name, by another process.
func TestParentReplaced(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		other := sc.e.Open(t)
		makeLayer(t, sc.s, "x-l", "base", map[string]string{"f": "first"})
		makeSnapshot(t, sc.s, "x-1", "x-l") // now it is remembered
		must(t, other.Remove(sc.ctx, "x-1"))
		must(t, other.Remove(sc.ctx, "x-l"))
		_, err := sc.s.CreateSnapshot(sc.ctx, "x-2", layer.SnapshotOptions{Parent: "x-l"})
		mustFail(t, err, layer.ErrNotFound)
		makeLayer(t, other, "x-l", "base", map[string]string{"f": "second"})
		makeSnapshot(t, sc.s, "x-3", "x-l")
		wantFiles(t, sc.s, "x-3", map[string]string{"a": "1", "f": "second"})
		// Another layer takes the name by renaming.
		makeLayer(t, other, "x-m", "base", map[string]string{"f": "third"})
		must(t, other.Rename(sc.ctx, "x-l", "x-old"))
		must(t, other.Rename(sc.ctx, "x-m", "x-l"))
		makeSnapshot(t, sc.s, "x-4", "x-l")
		wantFiles(t, sc.s, "x-4", map[string]string{"a": "1", "f": "third"})
	})
}

// A pool is destroyed and made anew under a process that has it open.
func TestPoolMadeAnew(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		old := sc.e.Open(t)
		must(t, sc.s.UpdateDocuments(sc.ctx, func(tx *layer.DocTx) error { return tx.Delete("test", "hold") }))
		must(t, pool.Destroy(sc.ctx, sc.e.Dirs, sc.e.Name))
		_, err := old.CreateSnapshot(sc.ctx, "x-s", layer.SnapshotOptions{})
		mustFail(t, err, layer.ErrNotFound)
		must(t, pool.Create(sc.ctx, sc.e.Dirs, pool.Spec{Name: sc.e.Name, DataSize: 1 << 30, BaseSize: 64 << 20}))
		_, err = old.CreateSnapshot(sc.ctx, "x-s", layer.SnapshotOptions{})
		mustFail(t, err, layer.ErrNotFound)
		sc.s = sc.e.Open(t)
		makeSnapshot(t, sc.s, "x-s", "")
	})
}

// An attached snapshot does not become a layer: its path was promised for its life.
func TestMoveAttached(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		sc.snapshot(t)
		_, err := sc.s.Attach(sc.ctx, "x-s", false)
		must(t, err)
		_, err = sc.s.Commit(sc.ctx, "x-s", "x-l", layer.CommitOptions{Move: true})
		mustFail(t, err, layer.ErrBusy)
		sc.handedOut("x-s")
		must(t, sc.s.Detach(sc.ctx, "x-s"))
	})
}

// A process that lives long does not know what others have cleaned up. What it has to look at when it
// opens the pool does not grow with what was ever removed.
func TestLowMarkFollows(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		sc.killed("snapshot of layer", "layer.create.thin-created")
		sc.open() // cleans it up, and writes nothing
		for range 5 * 64 {
			makeSnapshot(t, sc.s, "x-b", "base")
			must(t, sc.s.Remove(sc.ctx, "x-b"))
		}
		low, high, err := sc.e.Window(sc.ctx)
		must(t, err)
		if high-low > 3*64 {
			t.Errorf("%d ids are looked at by each open: %d to %d", high-low, low, high)
		}
	})
}

// A process that is killed while it views nodes leaves no device behind.
func TestKilledWhileViewing(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		sc.snapshot(t)
		must(t, sc.s.View(sc.ctx, []string{"top"}, func(context.Context, []string) error {
			c := pooltest.Run(t, pooltest.Job{Op: "die viewing", Dirs: sc.e.Dirs, Pool: sc.e.Name, Args: []string{"top", "x-s"}})
			if err, killed := c.Wait(); !killed {
				t.Fatalf("not killed: %v", err)
			}
			return nil
		}))
		must(t, sc.e.CheckLive(sc.ctx))
		// One of two who view the same ends, then the other dies.
		c := pooltest.Start(t, pooltest.Job{Op: "stop viewing", Dirs: sc.e.Dirs, Pool: sc.e.Name, Args: []string{"top", "x-s"}})
		c.WaitStopped()
		must(t, sc.holds(sc.ctx, "top", topFiles))
		must(t, sc.e.CheckLive(sc.ctx))
		c.Kill()
		must(t, sc.e.CheckLive(sc.ctx))
	})
}

// childViewing views the nodes that Args name, and sends itself a signal meanwhile.
func childViewing(signal unix.Signal) func(context.Context, pooltest.Job) error {
	return func(ctx context.Context, j pooltest.Job) error {
		s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
		if err != nil {
			return err
		}
		defer s.Close()
		return s.View(ctx, j.Args, func(context.Context, []string) error {
			pooltest.SignalSelf(signal)
			return nil
		})
	}
}
