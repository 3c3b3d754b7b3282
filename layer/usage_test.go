package layer_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// writeMiB fills a file with what no file system makes holes of.
func writeMiB(t testing.TB, dir, name string, n int) {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, name), bytes.Repeat([]byte("dmlayer "), n<<20/8), 0o600))
}

// measured returns what all nodes take.
func measured(t testing.TB, s *layer.Store) map[string]layer.Info {
	t.Helper()
	ctx := pooltest.Context(t)
	infos, err := s.List(ctx)
	must(t, err)
	must(t, s.Measure(ctx, infos))
	by := map[string]layer.Info{}
	for _, i := range infos {
		if i.Used == nil || i.Exclusive == nil {
			t.Fatalf("%s: used or exclusive is not known", i.Name)
		}
		by[i.Name] = i
	}
	return by
}

func dataUsed(t testing.TB, e *pooltest.Env) int64 {
	t.Helper()
	st, err := pool.Inspect(pooltest.Context(t), e.Dirs, e.Name)
	must(t, err)
	return *st.DataUsed
}

// makeFamily makes layers, snapshots and copies of each that share blocks in every way, and have some alone.
func makeFamily(t testing.TB, s *layer.Store) (names []string) {
	ctx := pooltest.Context(t)
	grow := func(name string, mib int) {
		writeMiB(t, mount(t, s, name), "of "+name, mib)
		unmount(t, s, name)
	}
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "s", "base")
	grow("s", 8)
	_, err := s.Commit(ctx, "s", "top", layer.CommitOptions{})
	must(t, err)
	grow("s", 4) // over what top has
	makeSnapshot(t, s, "t", "top")
	grow("t", 3)
	makeSnapshot(t, s, "c", "s")
	makeSnapshot(t, s, "empty", "top")
	return []string{"c", "empty", "t", "s", "top", "base"} // children first
}

// Exclusive is what the pool has free once more when the node has been removed.
func TestExclusiveIsWhatRemovingFrees(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s := e.Open(t)
			for _, name := range makeFamily(t, s) {
				before, i := dataUsed(t, e), measured(t, s)[name]
				must(t, s.Remove(pooltest.Context(t), name))
				freed := before - dataUsed(t, e)
				t.Logf("%s: used %d, exclusive %d", name, *i.Used, *i.Exclusive)
				if *i.Exclusive != freed {
					t.Errorf("%s: exclusive %d, removing it freed %d", name, *i.Exclusive, freed)
				}
				if name == "t" && *i.Exclusive < 3<<20 || name == "empty" && (*i.Exclusive != 0 || *i.Used < 8<<20) {
					t.Errorf("%s: used %d, exclusive %d", name, *i.Used, *i.Exclusive)
				}
			}
		})
	}
}

// What cannot be known stays unknown: nodes that are gone by now, and everything where reading fails.
func TestMeasureUnknown(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "gone", "base")
	infos, err := s.List(ctx)
	must(t, err)
	must(t, s.Remove(ctx, "gone"))
	must(t, s.Measure(ctx, infos))
	if infos[0].Used == nil || infos[0].Exclusive == nil || infos[1].Used != nil || infos[1].Exclusive != nil {
		t.Errorf("%+v", infos)
	}
	i, err := s.Inspect(ctx, "base")
	must(t, err)
	j := pooltest.Job{Action: pooltest.ActionFail, Point: "pool.metadata.reserved"}
	fault.Set(j.Hook(func(string) {}))
	err = s.Measure(ctx, []layer.Info{i})
	fault.Set(nil)
	if mustFail(t, err, pooltest.ErrInjected); i.Used != nil {
		t.Errorf("%+v", i)
	}
}

// A pool that can only be read still tells what its nodes take.
func TestMeasureReadOnly(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeFamily(t, s)
	before := measured(t, s)
	st, err := pool.Inspect(ctx, e.Dirs, e.Name)
	must(t, err)
	ref := devmapper.ByUUID(devmapper.UUID("DMLAYER-" + st.UUID + "-pool"))
	table, length, err := thinpool.NewPool(s.Devmapper(), ref).Table()
	must(t, err)
	readOnly := table
	readOnly.ReadOnly = true
	_, err = thinpool.ReloadPool(s.Devmapper(), ref, length, readOnly)
	must(t, err)
	for name, i := range measured(t, s) {
		if b := before[name]; *i.Used != *b.Used || *i.Exclusive != *b.Exclusive {
			t.Errorf("%s: used %d, exclusive %d, before %d and %d", name, *i.Used, *i.Exclusive, *b.Used, *b.Exclusive)
		}
	}
	_, err = thinpool.ReloadPool(s.Devmapper(), ref, length, table)
	must(t, err)
}

// Nodes are measured while others are made, written to and removed.
func TestMeasureMeanwhile(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeFamily(t, s)
	other := e.Open(t)
	done := make(chan error, 1)
	go func() {
		var err error
		for range 10 {
			_, cerr := other.CreateSnapshot(ctx, "busy", layer.SnapshotOptions{Parent: "top"})
			m, merr := other.Mount(ctx, "busy", "", layer.MountOptions{})
			werr := os.WriteFile(filepath.Join(m.Dir, "f"), make([]byte, 1<<20), 0o600)
			err = errors.Join(err, cerr, merr, werr, other.Unmount(ctx, "busy"), other.Remove(ctx, "busy"))
		}
		done <- err
	}()
	want := measured(t, s)["t"]
	for {
		infos, err := s.List(ctx)
		must(t, err)
		must(t, s.Measure(ctx, infos))
		for _, i := range infos {
			if i.Name == "t" && (*i.Used != *want.Used || *i.Exclusive != *want.Exclusive) {
				t.Errorf("%+v", i)
			}
		}
		select {
		case err := <-done:
			must(t, err)
			return
		default:
		}
	}
}
