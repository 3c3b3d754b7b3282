package pool_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// snapshotIn makes one more node in a pool.
func snapshotIn(t testing.TB, e *pooltest.Env, name string) {
	t.Helper()
	s := opened(t, e)
	_, err := s.CreateSnapshot(pooltest.Context(t), name, layer.SnapshotOptions{})
	must(t, err)
	must(t, s.Close())
}

// Records that are lost right after an import, again and again, are as they were: the import has copied them.
func TestImportAgain(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	for _, where := range []string{"label", "backup", "label"} {
		must(t, pool.Stop(ctx, e.Dirs, e.Name)) // which finds nothing to copy after an import
		must(t, os.Remove(e.Store()))
		if where == "label" {
			dropBackups(t, e)
		} else {
			spoil(t, e, 0, 1)
		}
		r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
		if r.Nodes != 4 || !strings.Contains(r.Source, where) || r.CopyTransaction != r.PoolTransaction || r.NotCopied != nil {
			t.Errorf("%s: imported with %+v", where, r)
		}
	}
	wantPool(t, e)
	must(t, e.Check(ctx))
}

// Where no copy is of the pool's present tag, that of the last import is taken, and not that with the largest of tags that are random. A copy
// that was chosen, and is older, is followed by newer ones than there are.
func TestImportCopyOfEarlierImports(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	uuid := state(t, e).UUID
	const imports = 3
	var kept []string // the last backup before each import, in a folder of its own
	for i := range imports {
		snapshotIn(t, e, fmt.Sprintf("late%d", i))
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		list := backups(t, e)
		last := list[len(list)-1]
		dir := filepath.Join(e.Dirs.Root, "backups", fmt.Sprintf("k%d-%s", i, uuid))
		must(t, os.MkdirAll(dir, 0o700))
		kept = append(kept, filepath.Join(dir, filepath.Base(last)))
		must(t, pooltest.CopySparse(last, kept[i]))
		must(t, os.Remove(e.Store()))
		imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	}
	loseAll := func() {
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		spoil(t, e, 0, 1)
		must(t, os.Remove(e.Store()))
	}
	loseAll()
	for _, b := range backups(t, e) {
		must(t, os.Remove(b))
	}
	r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
	if r.Source != kept[imports-1] || r.Nodes != 4+imports {
		t.Errorf("imported with %+v", r)
	}
	for _, o := range []pool.ImportOptions{{Dir: folder(e), Records: kept[0]}, {Dir: folder(e), Empty: true}} {
		loseAll()
		chosen, err := pool.Import(ctx, e.Dirs, o)
		must(t, err)
		loseAll()
		r, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e)})
		must(t, err)
		if r.CopyTransaction != r.PoolTransaction || r.Nodes != chosen.Nodes {
			t.Errorf("%+v, after %+v", r, chosen)
		}
	}
	must(t, pool.Destroy(ctx, e.Dirs, e.Name)) // with what no records name
}
