package layer_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// tamperer does behind dmlayer's back what nobody should.
type tamperer struct {
	t    testing.TB
	e    *pooltest.Env
	s    *layer.Store
	uuid string
}

func (x tamperer) dm() *devmapper.Client { return x.s.Devmapper() }

func (x tamperer) thin() *thinpool.Pool { return thinpool.NewPool(x.dm(), x.ref("pool")) }

func (x tamperer) ref(suffix string) devmapper.Ref {
	return devmapper.ByUUID(devmapper.UUID("DMLAYER-" + x.uuid + "-" + suffix))
}

func (x tamperer) id(name string) metadata.ThinID { return node(x.t, x.e, name).ID }

// activate makes the device of a thin device, named and sized at will.
func (x tamperer) activate(uuid string, id metadata.ThinID, size int64, readOnly bool) {
	x.t.Helper()
	info, err := x.dm().Info(x.ref("pool"))
	must(x.t, err)
	_, err = thinpool.Activate(x.dm(), thinpool.ThinSpec{
		Name: devmapper.Name(uuid), UUID: devmapper.UUID(uuid), Pool: info.Dev, ID: thinpool.ID(id),
		Size: devmapper.SectorsOf(uint64(size)), ReadOnly: readOnly,
	})
	must(x.t, err)
}

func (x tamperer) ours(id metadata.ThinID) string {
	return "DMLAYER-" + x.uuid + "-" + strconv.Itoa(int(id))
}

func (x tamperer) remove(uuid string) {
	x.t.Helper()
	_, err := x.dm().Remove(devmapper.ByUUID(devmapper.UUID(uuid)), devmapper.RemoveOptions{})
	must(x.t, err)
}

func (x tamperer) runDir(parts ...string) string {
	return filepath.Join(append([]string{x.e.Dirs.Run, "state", x.uuid}, parts...)...)
}

const strange = metadata.ThinID(5_000_000) // far from the window

var disagreements = []struct {
	name string
	make func(x tamperer)
	want []string // codes and nodes
	left []string // after mending; nil is nothing
	undo func(x tamperer)
}{
	{
		name: "thin device without a record",
		make: func(x tamperer) { must(x.t, x.thin().CreateThin(thinpool.ID(strange))) },
		want: []string{"orphan"},
	},
	{
		name: "active device without a record",
		make: func(x tamperer) {
			must(x.t, x.thin().CreateThin(thinpool.ID(strange)))
			x.activate(x.ours(strange), strange, 1<<20, false)
		},
		want: []string{"orphan", "device-orphan"},
	},
	{
		name: "record without a thin device",
		make: func(x tamperer) {
			makeSnapshot(x.t, x.s, "lost", "")
			must(x.t, x.thin().Delete(thinpool.ID(x.id("lost"))))
		},
		want: []string{"node-missing lost"}, left: []string{"node-missing lost"},
		undo: func(x tamperer) { must(x.t, x.s.Remove(pooltest.Context(x.t), "lost")) },
	},
	{
		name: "suspended device",
		make: func(x tamperer) {
			_, err := x.s.Attach(pooltest.Context(x.t), "web", false)
			must(x.t, err)
			must(x.t, x.dm().Suspend(pooltest.Context(x.t), x.ref(strconv.Itoa(int(x.id("web")))), devmapper.SuspendOptions{}))
		},
		want: []string{"device-suspended web"},
		undo: func(x tamperer) { must(x.t, x.s.Detach(pooltest.Context(x.t), "web")) },
	},
	{
		name: "active and unused",
		make: func(x tamperer) { x.activate(x.ours(x.id("web")), x.id("web"), node(x.t, x.e, "web").Size, false) },
		want: []string{"device-unused web"},
	},
	{
		name: "layer active for writing",
		make: func(x tamperer) { x.activate(x.ours(x.id("base")), x.id("base"), node(x.t, x.e, "base").Size, false) },
		want: []string{"layer-writable base", "device-unused base"},
	},
	{
		name: "device that is too large",
		make: func(x tamperer) {
			x.activate(x.ours(x.id("web")), x.id("web"), 2*node(x.t, x.e, "web").Size, false)
			must(x.t, os.MkdirAll(x.runDir("claims", strconv.Itoa(int(x.id("web")))), 0o700))
			must(x.t, os.WriteFile(x.runDir("claims", strconv.Itoa(int(x.id("web"))), "attached"), nil, 0o600))
		},
		want: []string{"device-wrong web"}, left: []string{"device-wrong web"},
		undo: func(x tamperer) { must(x.t, x.s.Detach(pooltest.Context(x.t), "web")) },
	},
	{
		name: "second device of a thin id",
		make: func(x tamperer) { x.activate("TEST-second", x.id("web"), node(x.t, x.e, "web").Size, true) },
		want: []string{"device-foreign"}, left: []string{"device-foreign"},
		undo: func(x tamperer) { x.remove("TEST-second") },
	},
	{
		name: "claim on nothing",
		make: func(x tamperer) {
			must(x.t, os.MkdirAll(x.runDir("claims", "999"), 0o700))
			must(x.t, os.WriteFile(x.runDir("claims", "999", "attached"), nil, 0o600))
		},
		want: []string{"claim-orphan"},
	},
	{
		name: "side files of nothing",
		make: func(x tamperer) {
			must(x.t, os.MkdirAll(filepath.Join(x.e.Dirs.Root, "pools", x.e.Name, "blobs", "999"), 0o700))
		},
		want: []string{"side-files-orphan"},
	},
	{
		name: "link to another node's device",
		make: func(x tamperer) {
			path, err := x.s.Attach(pooltest.Context(x.t), "web", false)
			must(x.t, err)
			target, err := os.Readlink(path)
			must(x.t, err)
			must(x.t, os.Symlink(target, filepath.Join(filepath.Dir(path), "base")))
		},
		want: []string{"link-orphan web"},
		undo: func(x tamperer) { must(x.t, x.s.Detach(pooltest.Context(x.t), "web")) },
	},
}

// TestCheckFinds makes each kind of disagreement: it is found under its name, mended where that can be, and not
// found after that.
func TestCheckFinds(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	wantFound(t, e)
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	for _, d := range disagreements {
		t.Run(d.name, func(t *testing.T) {
			x := x
			x.t = t
			d.make(x)
			wantFound(t, e, d.want...)
			_, err := pool.Check(pooltest.Context(t), e.Dirs, e.Name, pool.CheckOptions{Mend: func(f pool.Finding) bool { return true }})
			must(t, err)
			wantFound(t, e, d.left...)
			if d.undo != nil {
				d.undo(x)
			}
			wantFound(t, e)
		})
	}
}

// What must not be mended is left, and what somebody is at work on is not counted.
func TestCheckLeavesAlone(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	must(t, x.thin().CreateThin(thinpool.ID(strange)))
	_, err := pool.Check(pooltest.Context(t), e.Dirs, e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return false }})
	must(t, err)
	wantFound(t, e, "orphan")

	lock, err := os.OpenFile(e.LockFile(t), os.O_RDWR, 0)
	must(t, err)
	mine := unix.Flock_t{Type: unix.F_WRLCK, Start: int64(strange), Len: 1}
	must(t, unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &mine))
	if r := checkPool(t, e); r.Busy != 1 || len(found(r)) > 0 {
		t.Errorf("somebody has the lock: %+v", r)
	}
	must(t, lock.Close())
	must(t, x.thin().Delete(thinpool.ID(strange)))
}

// Whatever dies in the middle of an operation is found as such, and opening mends it.
func TestCheckAfterDeath(t *testing.T) {
	w := newWorld(t, "ext4")
	for _, c := range []struct{ op, point, code string }{
		{"fill", "layer.fill.filled", pool.FoundInFlight},
		{"remove", "layer.remove.tombstone", pool.FoundRemoval},
		{"commit mounted", "layer.freeze.suspended", pool.FoundChange},
	} {
		t.Run(c.point, func(t *testing.T) {
			i := slices.IndexFunc(nodeOperations("ext4"), func(op operation) bool { return op.name == c.op })
			op := nodeOperations("ext4")[i]
			w.p = "d-" + strconv.Itoa(i) + "-"
			op.prepare(t, w)
			j := w.job("ext4", op)
			j.Point = c.point
			pooltest.RunKilled(t, j)
			r := checkPool(t, w.e)
			if !r.Has(c.code) || len(found(r)) > 0 {
				t.Errorf("found %+v, want %s alone", r.Findings, c.code)
			}
			must(t, w.e.CheckLive(pooltest.Context(t)))
			w.cleanUp(t)
		})
	}
}

// Who looks at a node is nobody who died.
func TestCheckWhileViewed(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	must(t, s.View(pooltest.Context(t), []string{"base"}, func(context.Context, []string) error {
		if r := checkPool(t, e); len(r.Findings) > 0 {
			t.Errorf("found %+v", r.Findings)
		}
		return nil
	}))
}

// TestCheckBusy checks a pool over and over while it is worked on: there is nothing to be found.
func TestCheckBusy(t *testing.T) {
	w := newWorld(t, "ext4")
	ops := nodeOperations("ext4")
	for i, op := range ops {
		w.p = "b" + strconv.Itoa(i) + "-"
		op.prepare(t, w)
		c := pooltest.Start(t, w.job("ext4", op))
		for range 3 {
			if r := checkPool(t, w.e); len(found(r)) > 0 {
				t.Errorf("%s: %+v", op.name, r.Findings)
			}
		}
		if err, killed := c.Wait(); err != nil || killed {
			t.Errorf("%s: %v", op.name, err)
		}
		w.cleanUp(t)
	}
}
