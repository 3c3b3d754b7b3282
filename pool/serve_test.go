package pool_test

import (
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
)

// One process at a time serves a pool, and everybody can tell whether one does.
func TestServe(t *testing.T) {
	r := newReading(t, pool.Spec{})
	served := func(want bool) {
		t.Helper()
		if is, err := r.p.Served(r.ctx); err != nil || is != want {
			t.Errorf("served: %t, %v; want %t", is, err, want)
		}
	}
	served(false)
	stop, err := r.p.Serve(r.ctx)
	must(t, err)
	served(true)
	other, err := pool.Open(r.ctx, r.Dirs, r.Name, nil)
	must(t, err)
	defer other.Close()
	if _, err := other.Serve(r.ctx); errs.Class(err) != errs.ErrBusy {
		t.Errorf("served twice: %v", err)
	}
	must(t, stop())
	served(false)
	stop, err = other.Serve(r.ctx)
	must(t, err)
	served(true)
	must(t, stop())
}
