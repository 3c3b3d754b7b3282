package layer_test

import (
	"fmt"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// swapTable gives a linear device of the pool another table, and returns what puts the old one back. What lies below it is held meanwhile.
func (x tamperer) swapTable(suffix, kind string) (back func()) {
	x.t.Helper()
	before, err := x.dm().Table(x.ref(suffix))
	must(x.t, err)
	deps, err := x.dm().Deps(x.ref(suffix))
	must(x.t, err)
	below, err := os.Open(fmt.Sprintf("/dev/loop%d", deps[0].Minor))
	must(x.t, err)
	give := func(targets ...devmapper.Target) {
		x.t.Helper()
		must(x.t, x.dm().Load(x.ref(suffix), devmapper.LoadOptions{}, targets...))
		must(x.t, x.dm().Suspend(pooltest.Context(x.t), x.ref(suffix), devmapper.SuspendOptions{NoLockFS: true, NoFlush: true}))
		x.resume(suffix)
	}
	give(devmapper.Target{Length: before[0].Length, Type: kind})
	return func() {
		x.t.Helper()
		give(before...)
		must(x.t, below.Close())
	}
}

// A pool whose metadata the kernel could neither write nor take back is one that fails, and a repair brings it back whole, once its disk can be read.
func TestCheckFailed(t *testing.T) {
	e := pooltest.New(t, littlePool)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
	back := x.swapTable("metadata", "error")
	if err := x.thin().CreateThin(thinpool.ID(strange)); err == nil {
		t.Error("made without metadata")
	}
	back()
	r := mendAll(t, e)
	if got := codesOf(r); len(got) != 1 || got[0] != pool.FoundFailed || r.State != pool.StateFailed || !r.MetadataDamaged() || r.Findings[0].Mendable() {
		t.Errorf("found %+v", r)
	}
	if r := repair(t, e); len(r.Losses) > 0 || r.Old == "" {
		t.Errorf("repaired with %+v", r)
	}
	wantCodes(t, e)
	wantFiles(t, s, "web", baseFiles)
}
