package layer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

var smallPool = pool.Spec{Name: pooltest.PoolName, DataSize: 256 << 20, BaseSize: 64 << 20}

// poolOperation is an operation on a whole pool.
type poolOperation struct {
	name  string
	fresh bool // starts from nothing instead of from a stopped or running pool
	run   func(ctx context.Context, dirs pool.Dirs) error
}

var poolOperations = []poolOperation{
	{"create", true, func(ctx context.Context, dirs pool.Dirs) error { return pool.Create(ctx, dirs, smallPool) }},
	{"destroy", false, func(ctx context.Context, dirs pool.Dirs) error { return pool.Destroy(ctx, dirs, smallPool.Name) }},
	{"start", false, func(ctx context.Context, dirs pool.Dirs) error { return pool.Start(ctx, dirs, smallPool.Name) }},
	{"stop", false, func(ctx context.Context, dirs pool.Dirs) error { return pool.Stop(ctx, dirs, smallPool.Name) }},
	{"extend", false, func(ctx context.Context, dirs pool.Dirs) error {
		_, err := pool.Extend(ctx, dirs, smallPool.Name, pool.Extension{Data: pool.Extent{Bytes: 320 << 20}, Metadata: pool.Extent{Bytes: 8 << 20}})
		return err
	}},
	{"renew", false, func(ctx context.Context, dirs pool.Dirs) error {
		_, err := pool.Renew(ctx, dirs, smallPool.Name, nil)
		return err
	}},
	{"import", false, func(ctx context.Context, dirs pool.Dirs) error {
		return importPool(ctx, dirs, filepath.Join(dirs.Root, "pools", smallPool.Name))
	}},
	{"import from elsewhere", false, func(ctx context.Context, dirs pool.Dirs) error { return importPool(ctx, dirs, elsewhere(dirs)) }},
}

// elsewhere is where the pool lies that is imported from elsewhere.
func elsewhere(dirs pool.Dirs) string { return filepath.Join(filepath.Dir(dirs.Root), "elsewhere") }

// importPool imports a pool, or uses it where that has been done.
func importPool(ctx context.Context, dirs pool.Dirs, dir string) error {
	report, err := pool.Import(ctx, dirs, pool.ImportOptions{Dir: dir, Confirm: func(r pool.ImportReport) error {
		if r.Differs() {
			return fmt.Errorf("records and pool differ: %+v", r)
		}
		return nil
	}})
	if errors.Is(err, layer.ErrExists) || errors.Is(err, layer.ErrNotFound) {
		return pool.Start(ctx, dirs, smallPool.Name)
	}
	return errors.Join(err, report.NotCopied)
}

// childPool runs one of poolOperations, by its name.
func childPool(ctx context.Context, j pooltest.Job) error {
	for _, op := range poolOperations {
		if op.name == j.Args[0] {
			return op.run(ctx, j.Dirs)
		}
	}
	return fmt.Errorf("no operation %q", j.Args[0])
}

// prepare makes what an operation starts from: a pool with a layer, which has an active device where
// the pool is to be running.
func (op poolOperation) prepare(t testing.TB) *pooltest.Env {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: smallPool.Name}
	if op.fresh {
		return e
	}
	ctx := pooltest.Context(t)
	must(t, pool.Create(ctx, e.Dirs, smallPool))
	s, err := layer.Open(ctx, e.Config())
	must(t, err)
	makeLayer(t, s, "base", "", baseFiles)
	must(t, s.Close())
	switch op.name {
	case "start":
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
	case "import":
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		must(t, os.Remove(e.Store()))
	case "import from elsewhere":
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		must(t, os.Rename(filepath.Dir(e.Store()), elsewhere(e.Dirs)))
	}
	return e
}

// walkPool runs fn for each point that each operation on pools reaches, as walk does for nodes.
func walkPool(t *testing.T, fn func(t *testing.T, e *pooltest.Env, op poolOperation, hit int) (points int)) {
	for _, op := range poolOperations {
		t.Run(op.name, func(t *testing.T) {
			points := 1
			for hit := 0; hit <= points && !t.Failed(); hit++ {
				e := op.prepare(t)
				if n := fn(t, e, op, hit); hit == 0 {
					points = n
				}
				takeDown(t, e)
			}
		})
	}
}

func takeDown(t testing.TB, e *pooltest.Env) {
	t.Helper()
	ctx := pooltest.Context(t)
	if err := pool.Destroy(ctx, e.Dirs, e.Name); err != nil && !errors.Is(err, layer.ErrNotFound) {
		t.Fatal(err)
	}
	must(t, nothingLeft(e))
}

// nothingLeft checks that there is nothing of a pool any more.
func nothingLeft(e *pooltest.Env) error {
	c, err := devmapper.Open()
	if err != nil {
		return err
	}
	defer c.Close()
	list, err := c.List("DMLAYER-")
	if err == nil && len(list) > 0 {
		err = fmt.Errorf("devices left: %v", list)
	}
	for _, file := range []string{e.Data(), e.Metadata()} {
		if _, serr := os.Lstat(file); serr == nil {
			err = errors.Join(err, fmt.Errorf("file left: %s", file))
			if loops, lerr := fsutil.FindLoops(file); lerr != nil || len(loops) > 0 {
				err = errors.Join(err, lerr, fmt.Errorf("loop devices left: %v", loops))
			}
		}
	}
	for _, pattern := range []string{"pools/*/*", "../run/state/*/*", "../run/dev/*/*"} {
		left, gerr := filepath.Glob(filepath.Join(e.Dirs.Root, pattern))
		if gerr != nil || len(left) > 0 {
			err = errors.Join(err, gerr, fmt.Errorf("files left: %v", left))
		}
	}
	return err
}

// recovered does what comes after an interrupted operation: every other time by a command that only
// looks, else by the same operation again.
func (op poolOperation) recovered(t testing.TB, e *pooltest.Env, hit int) {
	t.Helper()
	ctx := pooltest.Context(t)
	if hit%2 == 1 {
		_, err := pool.Inspect(ctx, e.Dirs, e.Name)
		switch {
		case op.name == "create" || op.name == "destroy":
			mustFail(t, err, layer.ErrNotFound)
			must(t, nothingLeft(e))
		case strings.HasPrefix(op.name, "import") && errors.Is(err, layer.ErrNotFound): // none, and it can be imported
		default:
			must(t, err)
		}
	}
	err := op.run(ctx, e.Dirs)
	if op.name == "destroy" {
		mustFail(t, err, layer.ErrNotFound) // it was recorded before the first point
		must(t, nothingLeft(e))
		return
	}
	must(t, err)
	must(t, e.Check(ctx))
	if op.name != "create" {
		wantFiles(t, e.Open(t), "base", baseFiles)
	}
}

// TestPoolKilledAnywhere kills each operation on pools at each point that it reaches.
func TestPoolKilledAnywhere(t *testing.T) {
	walkPool(t, func(t *testing.T, e *pooltest.Env, op poolOperation, hit int) int {
		j := pooltest.Job{Op: "pool", Dirs: e.Dirs, Args: []string{op.name}}
		if hit == 0 {
			c := pooltest.Run(t, j)
			c.Succeed()
			return len(c.Hits())
		}
		j.Hit = hit
		pooltest.RunKilled(t, j)
		op.recovered(t, e, hit)
		return 0
	})
}

// TestPoolFailedAnywhere makes each point return an error: what can be taken back is taken back at once.
func TestPoolFailedAnywhere(t *testing.T) {
	walkPool(t, func(t *testing.T, e *pooltest.Env, op poolOperation, hit int) int {
		j := pooltest.Job{Action: pooltest.ActionFail, Hit: hit}
		if hit == 0 {
			j.Action = ""
		}
		hits := 0
		fault.Set(j.Hook(func(string) { hits++ }))
		err := op.run(pooltest.Context(t), e.Dirs)
		fault.Set(nil)
		if hit == 0 {
			must(t, err)
			return hits
		}
		mustFail(t, err, pooltest.ErrInjected)
		if op.name == "create" {
			must(t, nothingLeft(e))
		}
		op.recovered(t, e, hit)
		return 0
	})
}

// TestRecoveryKilledAnywhere kills the recovery of each kind of crash at each of its points.
func TestRecoveryKilledAnywhere(t *testing.T) {
	crashes := []struct{ op, point string }{
		{"fill", "layer.fill.filled"},
		{"remove a layer with side files", "layer.remove.tombstone"},
		{"commit mounted", "layer.freeze.suspended"},
		{"window", "pool.reserve.stored"},
		{"mount", "layer.mount.opened"},
		{"chain", "layer.freeze.suspended"},
		{"chain", "layer.fill.copy-settled"},
	}
	w := newWorld(t, "ext4")
	byName := map[string]operation{}
	for _, op := range nodeOperations("ext4") {
		byName[op.name] = op
	}
	for i, crash := range crashes {
		t.Run(crash.point, func(t *testing.T) {
			op := byName[crash.op]
			recovery := pooltest.Job{Op: "open", Dirs: w.e.Dirs, Pool: w.e.Name}
			kill := func(round int) {
				w.p = fmt.Sprintf("r%dr%d-", i, round)
				op.prepare(t, w)
				must(t, pool.Start(pooltest.Context(t), w.e.Dirs, w.e.Name))
				j := w.job("ext4", op)
				j.Point = crash.point
				pooltest.RunKilled(t, j)
			}
			look := func(at place) {
				w.recovered(t, op, at)
				w.cleanUp(t)
				must(t, w.e.Check(pooltest.Context(t)))
			}
			kill(0)
			c := pooltest.Run(t, recovery)
			c.Succeed()
			look(place{})
			for k, at := range places(c.Hits()) {
				kill(k + 1)
				recovery.Point, recovery.Hit = at.point, at.hit
				pooltest.RunKilled(t, recovery)
				look(at)
			}
		})
	}
}
