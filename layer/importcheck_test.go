package layer_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A pool that has lost its records and whose metadata the kernel wants checked comes back by an import and a repair, in this order.
func TestImportNeedsCheck(t *testing.T) {
	e, m := brokenPool(t)
	ctx := pooltest.Context(t)
	m.wantCheck()
	m.save()
	must(t, os.Remove(e.Store()))
	_, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
	must(t, err)
	wantFound(t, e, "needs-check")
	s := e.Open(t)
	wantFiles(t, s, "base", baseFiles) // it can be read already
	_, err = s.CreateSnapshot(ctx, "x", layer.SnapshotOptions{Parent: "base"})
	mustFail(t, err, layer.ErrDamaged)
	if r := repair(t, e); !r.Sound || len(r.Losses) > 0 {
		t.Errorf("report %+v", r)
	}
	wantFound(t, e)
	s = e.Open(t)
	makeSnapshot(t, s, "x", "base")
	wantFiles(t, s, "x", baseFiles)
}
