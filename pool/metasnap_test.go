package pool_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// reading is a pool whose metadata is read.
type reading struct {
	*pooltest.Env
	p   *pool.Pool
	ctx context.Context
}

func newReading(t *testing.T, spec pool.Spec) reading {
	r := reading{Env: pooltest.New(t, spec), ctx: pooltest.Context(t)}
	var err error
	r.p, err = pool.Open(r.ctx, r.Dirs, r.Name, nil)
	must(t, err)
	t.Cleanup(func() { must(t, r.p.Close()) })
	return r
}

func (r reading) read(fn func(*thinmeta.Metadata) error) error {
	s, err := r.p.Enter(r.ctx)
	if err != nil {
		return err
	}
	defer s.Exit()
	return s.ReadMetadata(r.ctx, fn)
}

// devices lists the thin devices as the metadata has them.
func (r reading) devices(m *thinmeta.Metadata) (ids []uint64, err error) {
	for d, err := range m.Devices(r.ctx) {
		if err != nil {
			return nil, err
		}
		ids = append(ids, d.ID)
	}
	return ids, nil
}

func (r reading) thin(t testing.TB) *thinpool.Pool {
	t.Helper()
	return thinpool.NewPool(r.p.Devmapper(), devmapper.ByUUID(devmapper.UUID("DMLAYER-"+r.p.UUID()+"-pool")))
}

// held wants the pool to have a metadata snapshot, or none.
func (r reading) held(t testing.TB, want bool) {
	t.Helper()
	st, err := r.thin(t).Status()
	must(t, err)
	if (st.HeldRoot != 0) != want {
		t.Errorf("metadata snapshot at block %d, want one: %t", st.HeldRoot, want)
	}
}

// What is read is of one moment, though the pool goes on working; and then the snapshot is gone, whatever
// the reader says.
func TestReadMetadata(t *testing.T) {
	r := newReading(t, small)
	thin := r.thin(t)
	must(t, r.read(func(m *thinmeta.Metadata) error {
		r.held(t, true)
		must(t, thin.CreateThin(1000))
		ids, err := r.devices(m)
		if len(ids) != 1 || ids[0] != 0 { // the label
			t.Errorf("devices %v", ids)
		}
		return err
	}))
	r.held(t, false)
	must(t, r.read(func(m *thinmeta.Metadata) error {
		must(t, thin.Delete(1000))
		ids, err := r.devices(m)
		if len(ids) != 2 || ids[1] != 1000 {
			t.Errorf("devices %v", ids)
		}
		return err
	}))
	mustFail(t, r.read(func(*thinmeta.Metadata) error { return errs.ErrInvalid }), errs.ErrInvalid)
	r.held(t, false)
}

// A reader that fails before it reads leaves nothing either.
func TestReadMetadataFails(t *testing.T) {
	r := newReading(t, small)
	j := pooltest.Job{Action: pooltest.ActionFail, Point: "pool.metadata.reserved"}
	fault.Set(j.Hook(func(string) {}))
	err := r.read(func(*thinmeta.Metadata) error { return nil })
	fault.Set(nil)
	mustFail(t, err, pooltest.ErrInjected)
	r.held(t, false)
}

// A pool has one metadata snapshot: readers take turns, and one that waits ends with its context.
func TestReadMetadataInTurns(t *testing.T) {
	r := newReading(t, small)
	var inside atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			err := r.read(func(m *thinmeta.Metadata) error {
				if inside.Add(1) != 1 {
					t.Error("two readers at once")
				}
				defer inside.Add(-1)
				_, err := m.Usage(r.ctx)
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	must(t, r.read(func(*thinmeta.Metadata) error {
		impatient := r
		var cancel context.CancelFunc
		impatient.ctx, cancel = context.WithCancel(r.ctx)
		cancel()
		mustFail(t, impatient.read(func(*thinmeta.Metadata) error { return nil }), context.Canceled)
		return nil
	}))
}

// What a reader left that died is released by the next reader, and by whoever opens the pool, though it was
// stopped and started in between; a living reader's is not.
func TestReaderDied(t *testing.T) {
	r := newReading(t, small)
	died := func() {
		t.Helper()
		_, err := r.thin(t).ReserveMetadataSnap()
		must(t, err)
	}
	open := func() {
		t.Helper()
		s, err := layer.Open(r.ctx, r.Config())
		must(t, err)
		must(t, s.Close())
	}
	died()
	must(t, r.read(func(m *thinmeta.Metadata) error {
		_, err := r.devices(m)
		return err
	}))
	r.held(t, false)
	died()
	open()
	r.held(t, false)
	must(t, r.read(func(m *thinmeta.Metadata) error {
		open()
		r.held(t, true)
		return nil
	}))
	died()
	must(t, pool.Stop(r.ctx, r.Dirs, r.Name))
	must(t, pool.Start(r.ctx, r.Dirs, r.Name))
	r.held(t, false)
}

// A pool that takes no messages is read as it lies on the device, also with what a dead reader left.
func TestReadMetadataReadOnly(t *testing.T) {
	r := newReading(t, small)
	thin := r.thin(t)
	_, err := thin.ReserveMetadataSnap()
	must(t, err)
	table, length, err := thin.Table()
	must(t, err)
	readOnly := table
	readOnly.ReadOnly = true
	_, err = thinpool.ReloadPool(r.p.Devmapper(), thin.Ref(), length, readOnly)
	must(t, err)
	must(t, r.read(func(m *thinmeta.Metadata) error {
		report, err := m.Check(r.ctx)
		if err == nil {
			err = report.Err()
		}
		ids, derr := r.devices(m)
		if len(ids) != 1 {
			t.Errorf("devices %v", ids)
		}
		return errors.Join(err, derr)
	}))
	_, err = thinpool.ReloadPool(r.p.Devmapper(), thin.Ref(), length, table)
	must(t, err)
	must(t, r.read(func(*thinmeta.Metadata) error { return nil }))
	r.held(t, false)
}

// Where metadata is short, no snapshot of it takes the rest.
func TestReadMetadataShort(t *testing.T) {
	spec := small
	spec.MetadataSize = 4 << 20
	r := newReading(t, spec)
	thin := r.thin(t)
	last := thinpool.ID(1000)
	for ; ; last++ {
		must(t, thin.CreateThin(last))
		st, err := thin.Status()
		must(t, err)
		if st.FreeMetadata() < 60 {
			break
		}
	}
	mustFail(t, r.read(func(*thinmeta.Metadata) error { return nil }), errs.ErrNoSpace)
	r.held(t, false)
	// A check says so, cannot tell what is in the pool, and so mends nothing of it.
	mend := pool.CheckOptions{Mend: func(pool.Finding) bool { return true }}
	report, err := pool.Check(r.ctx, r.Dirs, r.Name, mend)
	must(t, err)
	if f := report.Findings; len(f) != 1 || f[0].Code != pool.FoundMetadataLow || f[0].Class != pool.NeedsPerson || f[0].Mendable() || len(report.Unchecked) == 0 {
		t.Errorf("found %+v", report)
	}
	for id := thinpool.ID(1000); id <= last; id++ {
		must(t, thin.Delete(id))
	}
	must(t, r.read(func(*thinmeta.Metadata) error { return nil }))
}
