package service_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A pool that takes the place of one that went away, and that another process serves by then, is waited for.
func TestTakenByAnother(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 64 * mib})
	ctx := pooltest.Context(t)
	srv := serve(t, e)
	must(t, pool.Destroy(ctx, e.Dirs, e.Name))
	srv.until("the pool is gone")
	var other *layer.Store
	var stop func() error
	var once sync.Once
	fault.Set(func(p string) error {
		if p == "layer.recover.candidates" { // the service opens the new pool: somebody is faster
			once.Do(func() {
				fault.Set(nil)
				other = e.Open(t)
				var err error
				stop, err = other.Pool().Serve(ctx)
				must(t, err)
			})
		}
		return nil
	})
	defer fault.Set(nil)
	must(t, pool.Create(ctx, e.Dirs, pool.Spec{Name: e.Name, DataSize: 64 * mib, BaseSize: 32 * mib}))
	srv.until("cannot be served yet", "another process")
	must(t, stop())
	srv.look()
	srv.until("there is a pool again")
	srv.look()
	must(t, srv.stop())
}

// That it cannot be seen for the moment whether others see the service is no reason to end it.
func TestStillOursUnknown(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 64 * mib})
	srv := serve(t, e)
	locks := e.LockFile(t)
	away := filepath.Join(filepath.Dir(locks), "away")
	must(t, os.Rename(locks, away))
	must(t, os.Symlink(away, locks)) // which nobody opens
	srv.ticks <- time.Now()
	srv.until("cannot see whether")
	must(t, os.Remove(locks))
	must(t, os.Rename(away, locks))
	srv.ticks <- time.Now()
	srv.look()
	must(t, srv.stop())
}
