package service_test

import (
	"sync/atomic"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// counted counts how often points are reached from now on.
func counted(t testing.TB, points ...string) *atomic.Int64 {
	t.Helper()
	var n atomic.Int64
	fault.Set(func(p string) error {
		for _, want := range points {
			if p == want {
				n.Add(1)
			}
		}
		return nil
	})
	t.Cleanup(func() { fault.Set(nil) })
	return &n
}

// A removed node that somebody still has mounted is no reason to look for work again and again.
func TestRemovedInUseRests(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	_, d, err := s.Prepare(ctx, "n", layer.SnapshotOptions{}, layer.ClaimOptions{Claim: "x"}, nil)
	must(t, err)
	dir := t.TempDir()
	must(t, unix.Mount(d.Path, dir, d.FS, 0, ""))
	srv := serve(t, e)
	if removed, err := s.Drop(ctx, "n", "x", func(*layer.DocTx) error { return nil }); !removed || err != nil {
		t.Errorf("removed %v, %v", removed, err)
	}
	// Somebody comes and goes, which is a reason to look.
	other, err := layer.Open(ctx, e.Config())
	must(t, err)
	must(t, other.Close())
	n := counted(t, "layer.recover.candidates")
	for range 100 {
		srv.look()
	}
	if n.Load() > 10 {
		t.Errorf("looked for what dead processes left %d times", n.Load())
	}
	must(t, unix.Unmount(dir, 0))
	_, err = s.Reap(ctx, nil)
	must(t, err)
	must(t, srv.stop())
}

// Nor is one whose thin device somebody has activated without dmlayer: nothing tells when he ends.
func TestRemovedActivatedElsewhereRests(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	_, err := s.CreateSnapshot(ctx, "n", layer.SnapshotOptions{})
	must(t, err)
	n, err := e.Node(ctx, "n")
	must(t, err)
	dm := s.Devmapper()
	running, err := dm.Info(devmapper.ByUUID(devmapper.UUID("DMLAYER-" + s.Pool().UUID() + "-pool")))
	must(t, err)
	_, err = thinpool.Activate(dm, thinpool.ThinSpec{
		Name: "elsewhere", UUID: "ELSEWHERE", Pool: running.Dev, ID: thinpool.ID(n.ID), Size: devmapper.SectorsOf(uint64(n.Size)),
	})
	must(t, err)
	srv := serve(t, e)
	tried := counted(t, "layer.recover.locked")
	_, err = s.RemoveNode(ctx, "n", layer.RemoveOptions{NoWait: true})
	must(t, err)
	for tried.Load() == 0 {
		srv.look()
	}
	for range 100 {
		srv.look()
	}
	if tried.Load() > 10 {
		t.Errorf("tried to delete it %d times", tried.Load())
	}
	_, err = dm.Remove(devmapper.ByUUID("ELSEWHERE"), devmapper.RemoveOptions{})
	must(t, err)
	r, err := s.Reap(ctx, nil)
	must(t, err)
	if ids, err := e.Tombstones(ctx); r.Failed > 0 || len(ids) > 0 || err != nil {
		t.Errorf("%+v; left are %d, %v", r, ids, err)
	}
	must(t, srv.stop())
}
