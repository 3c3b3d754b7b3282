package pool_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A copy of a pool's folder has the pool's UUID. Nothing that is done with it may touch the original, be
// that running or not.
func TestCopyNeverTouchesTheOriginal(t *testing.T) {
	a := newPool(t)
	ctx := pooltest.Context(t)
	s := a.Open(t)
	_, err := s.CreateSnapshot(ctx, "mine", layer.SnapshotOptions{})
	must(t, err)
	dir := t.TempDir()
	b := &pooltest.Env{Dirs: pool.Dirs{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}, Name: a.Name}
	must(t, os.CopyFS(b.Dirs.Root, os.DirFS(a.Dirs.Root)))

	_, err = layer.Open(ctx, b.Config())
	mustFail(t, err, errs.ErrDamaged)
	mustFail(t, pool.Stop(ctx, b.Dirs, b.Name), errs.ErrDamaged)
	mustFail(t, pool.Destroy(ctx, b.Dirs, b.Name), errs.ErrDamaged)
	if st := state(t, a); st.State != pool.StateActive || st.Snapshots != 1 {
		t.Fatalf("the original is %+v", st)
	}
	must(t, s.Remove(ctx, "mine"))

	must(t, pool.Stop(ctx, a.Dirs, a.Name))
	must(t, os.RemoveAll(b.Dirs.Root))
	must(t, os.CopyFS(b.Dirs.Root, os.DirFS(a.Dirs.Root)))
	must(t, pool.Destroy(ctx, b.Dirs, b.Name))
	must(t, pool.Start(ctx, a.Dirs, a.Name))
}

func TestMissingFile(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Rename(e.Data(), e.Data()+".away"))
	err := pool.Start(ctx, e.Dirs, e.Name)
	if mustFail(t, err, errs.ErrDamaged); errs.Hint(err) == "" {
		t.Error("no hint")
	}
	must(t, os.Rename(e.Data()+".away", e.Data()))
}
