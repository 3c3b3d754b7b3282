package layer_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// The tests TestInterleavingNN are the lines of the list of crashes and races that the state protocol was
// designed against. A is a child that is stopped or killed at a fault point, B is this process, which has
// had the pool open all the time, or another child.

// scene is one interleaving on one file system.
type scene struct {
	*world
	t   *testing.T
	fs  string
	ctx context.Context
	ops map[string]operation
}

// play runs an interleaving on a fresh pool of each file system, and checks the pool afterwards.
func play(t *testing.T, fn func(t *testing.T, sc *scene)) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) { playOn(t, fs, fn) })
	}
}

func playOn(t *testing.T, fs string, fn func(t *testing.T, sc *scene)) {
	sc := &scene{world: newWorld(t, fs), t: t, fs: fs, ctx: pooltest.Context(t), ops: map[string]operation{}}
	sc.p = "x-"
	for _, op := range nodeOperations(fs) {
		sc.ops[op.name] = op
	}
	fn(t, sc)
	sc.cleanUp(t)
	must(t, sc.e.Check(sc.ctx))
}

// start starts A's operation, on nodes that are there already.
func (sc *scene) start(op, action, point string) *pooltest.Child {
	sc.t.Helper()
	if _, ok := sc.ops[op]; !ok {
		sc.t.Fatalf("no operation %q", op)
	}
	j := sc.job(sc.fs, sc.ops[op])
	j.Action, j.Point = action, point
	return pooltest.Start(sc.t, j)
}

// stopped prepares A's operation and runs it until it stops at a point.
func (sc *scene) stopped(op, point string) *pooltest.Child {
	sc.t.Helper()
	sc.ops[op].prepare(sc.t, sc.world)
	a := sc.start(op, pooltest.ActionStop, point)
	a.WaitStopped()
	return a
}

// killed prepares A's operation and kills it at a point.
func (sc *scene) killed(op, point string) {
	sc.t.Helper()
	sc.ops[op].prepare(sc.t, sc.world)
	if err, killed := sc.start(op, pooltest.ActionKill, point).Wait(); !killed {
		sc.t.Fatalf("%s was not killed at %s: %v", op, point, err)
	}
}

// open opens the pool as the next command does.
func (sc *scene) open() {
	sc.t.Helper()
	s, err := layer.Open(sc.ctx, sc.e.Config())
	must(sc.t, err)
	must(sc.t, s.Close())
}

// fails checks how A failed.
func fails(t testing.TB, a *pooltest.Child, class error) {
	t.Helper()
	err, killed := a.Wait()
	if killed {
		t.Fatal("killed")
	}
	mustFail(t, err, class)
}

// device returns the state of a node's kernel device.
func (sc *scene) device(name string) devmapper.Info {
	sc.t.Helper()
	n, err := sc.e.Node(sc.ctx, name)
	must(sc.t, err)
	info, err := sc.s.Devmapper().Info(devmapper.ByUUID(sc.e.DeviceUUID(sc.ctx, n.ID)))
	must(sc.t, err)
	return info
}

// A has done create_snap and is unpacking for minutes; B opens the pool; A records: A's node is whole, B
// touched nothing of it.
func TestInterleaving01OpenWhileUnpacking(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		// Before it has a device, while it is mounted, and when its device is gone again.
		for _, point := range []string{"layer.create.thin-created", "layer.fill.mounted", "layer.fill.flushed"} {
			a := sc.stopped("fill", point)
			sc.open()
			makeSnapshot(t, sc.s, "x-other", "base")
			a.Continue()
			a.Succeed()
			sc.mustBe(t, sc.ops["fill"], true)
			sc.cleanUp(t)
		}
	})
}

// A is killed in the middle of unpacking; B opens: B unmounts, deactivates, deletes the id; nothing is left.
func TestInterleaving02KilledWhileUnpacking(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, point := range []string{"layer.fill.mounted", "layer.fill.filled"} {
			sc.killed("fill", point)
			sc.mustBe(t, sc.ops["fill"], false)
			must(t, sc.e.CheckLive(sc.ctx))
		}
		if thins, err := sc.e.Thins(sc.ctx); err != nil || len(thins) != 4 { // label, template, base, top
			t.Fatalf("thin devices %v, %v", thins, err)
		}
	})
}

// A has suspended a device to snapshot it; B starts and finds it suspended: B leaves it; A's snapshot is
// not torn.
func TestInterleaving03SuspendedByTheLiving(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, point := range []string{"layer.freeze.suspended", "layer.freeze.snapped"} {
			a := sc.stopped("commit mounted", point)
			sc.open()
			_, err := sc.s.List(sc.ctx)
			must(t, err)
			if !sc.device("x-s").Suspended {
				t.Fatalf("B resumed a device whose owner lives, at %s", point)
			}
			a.Continue()
			a.Succeed()
			sc.mustBe(t, sc.ops["commit mounted"], true)
			sc.cleanUp(t)
		}
	})
}

// A is killed between suspend and resume: the device is resumed by whoever comes next.
func TestInterleaving04KilledWhileSuspended(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, point := range []string{"layer.freeze.suspended", "layer.freeze.snapped"} {
			sc.killed("commit mounted", point)
			sc.open()
			if sc.device("x-s").Suspended {
				t.Fatalf("suspended for ever after a crash at %s", point)
			}
			sc.mustBe(t, sc.ops["commit mounted"], false)
			sc.cleanUp(t)
		}
	})
}

// A makes a snapshot of P while B removes P: one of them fails cleanly; no child without a parent.
func TestInterleaving05ParentRemoved(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, point := range []string{"layer.create.id-taken", "layer.create.thin-created", "layer.snapshot.before-record"} {
			makeLayer(t, sc.s, "x-p", "base", nil)
			a := pooltest.Start(t, pooltest.Job{Op: "child of", Dirs: sc.e.Dirs, Pool: sc.e.Name, Args: []string{"x-s", "x-p"},
				Action: pooltest.ActionStop, Point: point})
			a.WaitStopped()
			must(t, sc.s.Remove(sc.ctx, "x-p"))
			a.Continue()
			fails(t, a, layer.ErrNotFound)
			must(t, sc.e.CheckLive(sc.ctx))
		}
		makeLayer(t, sc.s, "x-l", "base", nil)
		a := sc.start("remove a layer with side files", pooltest.ActionStop, "layer.remove.tombstone")
		a.WaitStopped()
		_, err := sc.s.CreateSnapshot(sc.ctx, "x-s", layer.SnapshotOptions{Parent: "x-l"})
		mustFail(t, err, layer.ErrNotFound)
		a.Continue()
		a.Succeed()
		// A child that is there keeps its parent.
		makeLayer(t, sc.s, "x-l", "base", nil)
		makeSnapshot(t, sc.s, "x-s", "x-l")
		mustFail(t, sc.s.Remove(sc.ctx, "x-l"), layer.ErrBusy)
	})
}

// childOf makes a snapshot: Args are its name and its parent's.
func childOf(ctx context.Context, j pooltest.Job) error {
	s, err := layer.Open(ctx, layer.Config{Dirs: j.Dirs, Pool: j.Pool})
	if err != nil {
		return err
	}
	defer s.Close()
	_, err = s.CreateSnapshot(ctx, j.Args[0], layer.SnapshotOptions{Parent: j.Args[1]})
	return err
}

// A's tombstone is being worked on; B redoes tombstones: no error, no double work on a reused id.
func TestInterleaving06TombstonesRedone(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		a := sc.stopped("remove", "layer.remove.tombstone")
		sc.open()
		makeSnapshot(t, sc.s, "x-other", "base")
		a.Continue()
		a.Succeed()
		sc.open()
		// Two that recover at once.
		sc.killed("remove", "layer.remove.tombstone")
		b := pooltest.Start(t, pooltest.Job{Op: "open", Dirs: sc.e.Dirs, Pool: sc.e.Name, Action: pooltest.ActionStop, Point: "layer.recover.locked"})
		b.WaitStopped()
		sc.open()
		b.Continue()
		b.Succeed()
	})
}

// Killed after delete, before the tombstone is dropped: it is dropped later, ENODATA is fine.
func TestInterleaving07TombstoneLeft(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		sc.killed("remove", "layer.remove.deleted")
		if tombs, err := sc.e.Tombstones(sc.ctx); err != nil || len(tombs) != 1 {
			t.Fatalf("tombstones %v, %v", tombs, err)
		}
		s := sc.e.Open(t)
		makeSnapshot(t, s, "x-other", "base")
		if tombs, err := sc.e.Tombstones(sc.ctx); err != nil || len(tombs) != 0 {
			t.Fatalf("tombstones after the next write: %v, %v", tombs, err)
		}
	})
}

// A and B allocate ids at once: never one id in two records.
func TestInterleaving10IDsAtOnce(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		a := sc.stopped("snapshot of layer", "layer.create.id-taken")
		for i := range 3 {
			makeSnapshot(t, sc.s, fmt.Sprintf("x-b%d", i), "base")
		}
		a.Continue()
		a.Succeed()
		var children []*pooltest.Child
		for i := range 4 {
			children = append(children, pooltest.Start(t, pooltest.Job{Op: "child of", Dirs: sc.e.Dirs, Pool: sc.e.Name, Args: []string{fmt.Sprintf("x-c%d", i), "top"}}))
		}
		for i := range 6 {
			makeSnapshot(t, sc.s, fmt.Sprintf("x-d%d", i), "base")
		}
		for _, c := range children {
			c.Succeed()
		}
		ids := map[metadata.ThinID]string{}
		infos, err := sc.s.List(sc.ctx)
		must(t, err)
		for _, i := range infos {
			n, err := sc.e.Node(sc.ctx, i.Name)
			must(t, err)
			if ids[n.ID] != "" {
				t.Errorf("%s and %s have thin id %d", i.Name, ids[n.ID], n.ID)
			}
			ids[n.ID] = i.Name
		}
		if len(ids) != 2+1+3+4+6 {
			t.Errorf("%d nodes", len(ids))
		}
	})
}

// Killed in resize after the table grew, before or after the file system did: mountable, at the larger
// size.
func TestInterleaving11KilledInResize(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, op := range []string{"resize", "resize mounted"} {
			for _, point := range []string{"layer.resize.recorded", "layer.resize.table", "layer.resize.grown"} {
				sc.killed(op, point)
				sc.open()
				if op == "resize mounted" {
					unmount(t, sc.s, "x-s")
				}
				must(t, sc.spaceFollowsSize(sc.ctx))
				n, err := sc.s.Get(sc.ctx, "x-s")
				must(t, err)
				if n.Size != grown {
					t.Errorf("killed at %s: %d bytes", point, n.Size)
				}
				must(t, snapshotWhole(sc.ctx, sc.world))
				sc.cleanUp(t)
			}
		}
	})
}

// A resizes S while B commits S: the layer's recorded size covers its file system.
func TestInterleaving12ResizeAndCommit(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		for _, point := range []string{"layer.resize.recorded", "layer.resize.table", "layer.resize.grown"} {
			a := sc.stopped("resize mounted", point)
			b := sc.start("commit mounted", "", "")
			a.Continue()
			a.Succeed()
			b.Succeed()
			n, err := sc.s.Get(sc.ctx, "x-l")
			must(t, err)
			must(t, sc.s.View(sc.ctx, []string{"x-l"}, func(_ context.Context, roots []string) error {
				size, err := pooltest.FSSize(roots[0])
				if err == nil && size > n.Size {
					err = fmt.Errorf("layer of %d bytes with a file system of %d", n.Size, size)
				}
				return err
			}))
			wantFiles(t, sc.s, "x-l", snapFiles)
			sc.cleanUp(t)
		}
	})
}

// A's device goes away between its activation and A's open, and its minor is another node's: A never
// mounts another node's device.
func TestInterleaving13MinorReused(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		a := sc.stopped("mount", "layer.device.activated")
		was := sc.device("x-s")
		_, err := sc.s.Devmapper().Remove(devmapper.ByDev(was.Dev), devmapper.RemoveOptions{})
		must(t, err)
		mount(t, sc.s, "top")
		if now := sc.device("top"); now.Dev != was.Dev {
			t.Fatalf("top has %s, not the minor of %s", now.Dev, was.Dev)
		}
		a.Continue()
		a.Succeed()
		must(t, sameFiles("mount point of the snapshot", sc.e.MountPoint("x-s"), snapFiles))
		must(t, sameFiles("mount point of the layer", sc.e.MountPoint("top"), topFiles))
		unmount(t, sc.s, "top")
	})
}

// A and B load the same layer: it is unpacked once, and B learns that it is there.
func TestInterleaving14SameLayerTwice(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		a := sc.stopped("fill", "layer.fill.mounted")
		b := sc.start("fill", "", "")
		a.Continue()
		a.Succeed()
		fails(t, b, layer.ErrExists)
		for _, hit := range b.Hits() {
			if hit == "layer.fill.mounted" {
				t.Error("B unpacked it too")
			}
		}
		sc.mustBe(t, sc.ops["fill"], true)
		// Where A dies, B does it.
		sc.cleanUp(t)
		a = sc.stopped("fill", "layer.fill.mounted")
		b = sc.start("fill", "", "")
		a.Kill()
		b.Succeed()
		sc.mustBe(t, sc.ops["fill"], true)
	})
}

// An old copy of the store is put back; an old copy of the pool is put back: refused and explained, nothing
// deleted.
func TestInterleaving16OldCopies(t *testing.T) {
	playOn(t, "ext4", func(t *testing.T, sc *scene) {
		stop := func() { must(t, pool.Stop(sc.ctx, sc.e.Dirs, sc.e.Name)) }
		save := func(to string) {
			must(t, os.Mkdir(to, 0o700))
			for _, file := range []string{sc.e.Store(), sc.e.Metadata(), sc.e.Data()} {
				must(t, pooltest.CopySparse(file, filepath.Join(to, filepath.Base(file))))
			}
		}
		put := func(from string, files ...string) {
			for _, file := range files {
				must(t, pooltest.CopySparse(filepath.Join(from, filepath.Base(file)), file))
			}
		}
		refused := func() {
			_, err := layer.Open(sc.ctx, sc.e.Config())
			mustFail(t, err, layer.ErrDamaged)
			must(t, pool.Stop(sc.ctx, sc.e.Dirs, sc.e.Name))
		}
		before, after := filepath.Join(t.TempDir(), "before"), filepath.Join(t.TempDir(), "after")
		stop()
		save(before)
		makeSnapshot(t, sc.s, "x-new", "top") // after the start's bump
		stop()
		save(after)
		put(before, sc.e.Store())
		refused()
		put(after, sc.e.Store())
		put(before, sc.e.Metadata(), sc.e.Data())
		refused()
		put(after, sc.e.Metadata(), sc.e.Data())
		wantFiles(t, sc.s, "x-new", topFiles)
	})
}

// A layer is viewed while children of it are made and written: its bytes never change.
func TestInterleaving18LayerNeverChanges(t *testing.T) {
	playOn(t, "xfs", func(t *testing.T, sc *scene) {
		before := sc.sum("top")
		must(t, sc.s.View(sc.ctx, []string{"top"}, func(_ context.Context, roots []string) error {
			makeSnapshot(t, sc.s, "x-s", "top")
			dir := mount(t, sc.s, "x-s")
			must(t, writeFiles(dir, map[string]string{"a": "changed", "b": "changed"}))
			_, err := sc.s.Commit(sc.ctx, "x-s", "x-l", layer.CommitOptions{})
			must(t, err)
			unmount(t, sc.s, "x-s")
			makeLayer(t, sc.s, "x-l2", "top", map[string]string{"a": "changed too"})
			return sameFiles("top", roots[0], topFiles)
		}))
		if after := sc.sum("top"); after != before {
			t.Errorf("the bytes of a layer changed: %08x, %08x", before, after)
		}
	})
}

// sum returns a checksum of all bytes of a node that is not in use.
func (sc *scene) sum(name string) uint32 {
	sc.t.Helper()
	path, err := sc.s.Attach(sc.ctx, name, true)
	must(sc.t, err)
	sum, err := pooltest.Checksum(path)
	must(sc.t, err)
	must(sc.t, sc.s.Detach(sc.ctx, name))
	return sum
}
