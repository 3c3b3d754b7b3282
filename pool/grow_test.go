package pool_test

import (
	"errors"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

const gib = 1 << 30

// grower is a pool that is about to grow.
type grower struct {
	t   *testing.T
	e   *pooltest.Env
	dm  *devmapper.Client
	ref devmapper.Ref
}

func newGrower(t *testing.T) grower {
	e := pooltest.New(t, pool.Spec{DataSize: 256 << 20, MetadataSize: 8 << 20})
	dm, err := devmapper.Open()
	must(t, err)
	t.Cleanup(func() { must(t, dm.Close()) })
	st, err := pool.Inspect(pooltest.Context(t), e.Dirs, e.Name)
	must(t, err)
	return grower{t, e, dm, devmapper.ByUUID(devmapper.UUID("DMLAYER-" + st.UUID + "-pool"))}
}

func (g grower) extend(x pool.Extension) (pool.Sizes, error) {
	return pool.Extend(pooltest.Context(g.t), g.e.Dirs, g.e.Name, x)
}

// want checks what the kernel has, and what is recorded.
func (g grower) want(data, meta int64) {
	g.t.Helper()
	st, err := pool.Inspect(pooltest.Context(g.t), g.e.Dirs, g.e.Name)
	must(g.t, err)
	if st.State != pool.StateActive || *st.DataTotal != data || *st.MetadataTotal > meta || *st.MetadataTotal < meta*9/10 {
		g.t.Errorf("%s, data %d, metadata %d; want %d and %d", st.State, *st.DataTotal, *st.MetadataTotal, data, meta)
	}
	info, err := g.dm.Info(g.ref)
	must(g.t, err)
	if info.Suspended || info.Inactive {
		g.t.Errorf("suspended %t, a table staged %t", info.Suspended, info.Inactive)
	}
}

// A pool grows while it runs and from a stop, by a size and by a step; nothing else is taken for a size.
func TestExtend(t *testing.T) {
	g := newGrower(t)
	ctx := pooltest.Context(t)
	now, err := g.extend(pool.Extension{Data: pool.Extent{Bytes: 512 << 20}})
	must(t, err)
	if now != (pool.Sizes{Data: 512 << 20, Metadata: 8 << 20}) {
		t.Errorf("%+v", now)
	}
	g.want(512<<20, 8<<20)
	must(t, pool.Stop(ctx, g.e.Dirs, g.e.Name))
	_, err = g.extend(pool.Extension{Data: pool.Extent{Bytes: 64<<20 + 1, More: true}, Metadata: pool.Extent{Bytes: 8 << 20, More: true}})
	must(t, err)
	g.want(576<<20, 16<<20)
	for what, x := range map[string]struct {
		ask  pool.Extension
		want error
	}{
		"smaller data":            {pool.Extension{Data: pool.Extent{Bytes: gib / 2}}, errs.ErrInvalid},
		"smaller metadata":        {pool.Extension{Metadata: pool.Extent{Bytes: 8 << 20}}, errs.ErrInvalid},
		"metadata over 16 GiB":    {pool.Extension{Metadata: pool.Extent{Bytes: 16 * gib}}, errs.ErrInvalid},
		"more than a pool can":    {pool.Extension{Data: pool.Extent{Bytes: 1 << 60, More: true}}, errs.ErrInvalid},
		"more than the host has":  {pool.Extension{Data: pool.Extent{Bytes: 1 << 50}}, errs.ErrNoSpace},
		"metadata the host lacks": {pool.Extension{Metadata: pool.Extent{Bytes: 15 * gib}}, errs.ErrNoSpace},
	} {
		if _, err := g.extend(x.ask); errs.Class(err) != x.want {
			t.Errorf("%s: %v", what, err)
		}
	}
	g.want(576<<20, 16<<20)
}

// What the kernel refuses only when it is resumed leaves the pool suspended, with the wrong table: whoever died there is cleaned up
// after by the next command.
func TestLeftSuspended(t *testing.T) {
	g := newGrower(t)
	live, err := g.dm.Table(g.ref)
	must(t, err)
	short := live[0]
	short.Length = 128
	// As ReloadPool does, and then dies.
	must(t, thinpool.NewPool(g.dm, g.ref).CreateThin(7)) // so that the data is in use
	must(t, g.dm.Load(g.ref, devmapper.LoadOptions{}, short))
	if _, err := g.dm.Resume(g.ref, devmapper.ResumeOptions{}); err == nil {
		t.Fatal("the kernel took a table that is too short")
	}
	info, err := g.dm.Info(g.ref)
	must(t, err)
	if !info.Suspended {
		t.Fatal("the pool is not suspended: nothing is tested")
	}
	must(t, thinpoolDelete(g, 7))
	must(t, pool.Start(pooltest.Context(t), g.e.Dirs, g.e.Name))
	g.want(256<<20, 8<<20)
	must(t, g.dm.Suspend(pooltest.Context(t), g.ref, devmapper.SuspendOptions{}))
	_, err = g.extend(pool.Extension{Data: pool.Extent{Bytes: 320 << 20}})
	must(t, err)
	g.want(320<<20, 8<<20)
}

// thinpoolDelete deletes a thin device; a suspended pool takes messages.
func thinpoolDelete(g grower, id thinpool.ID) error {
	err := thinpool.NewPool(g.dm, g.ref).Delete(id)
	if errors.Is(err, thinpool.ErrNotCommitted) {
		return nil
	}
	return err
}

// A backing that was made smaller is found out, and the pool runs on.
func TestMadeSmaller(t *testing.T) {
	g := newGrower(t)
	must(t, os.Truncate(g.e.Data(), 128<<20))
	if _, err := g.extend(pool.Extension{}); errs.Class(err) != errs.ErrDamaged {
		t.Errorf("half the data is gone: %v", err)
	}
	must(t, os.Truncate(g.e.Data(), 256<<20))
	_, err := g.extend(pool.Extension{})
	must(t, err)
	g.want(256<<20, 8<<20)
}

// Settings change one by one.
func TestSetSpace(t *testing.T) {
	g := newGrower(t)
	ctx := pooltest.Context(t)
	s, err := pool.SetSpace(ctx, g.e.Dirs, g.e.Name, func(s *pool.Space) { s.GrowAt, s.GrowLimit = 70, gib })
	must(t, err)
	if s != (pool.Space{GrowAt: 70, GrowBy: 20, GrowLimit: gib, MinFree: 10}) {
		t.Errorf("%+v", s)
	}
	if _, err := pool.SetSpace(ctx, g.e.Dirs, g.e.Name, func(s *pool.Space) { s.GrowLimit = 1 << 20 }); errs.Class(err) != errs.ErrInvalid {
		t.Errorf("a limit below what there is: %v", err)
	}
	again, err := pool.SetSpace(ctx, g.e.Dirs, g.e.Name, func(*pool.Space) {})
	must(t, err)
	if again != s {
		t.Errorf("%+v, before %+v", again, s)
	}
}
