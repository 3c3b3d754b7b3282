package layer_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// A device without a record gets one under the name that somebody wants, whole; one that was never handed out is not touched.
func TestAdopt(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		makeLayer(t, s, "base", "", baseFiles)
		makeSnapshot(t, s, "web", "base")
		web := node(t, e, "web")
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		must(t, os.Remove(e.Store()))
		_, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store()), Empty: true})
		must(t, err)
		s = e.Open(t)
		x := tamperer{t: t, e: e, s: s, uuid: checkPool(t, e).UUID}
		must(t, x.thin().CreateThin(thinpool.ID(strange)))
		adopt := func(id uint64, name string) error {
			_, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{Adopt: func(f pool.Finding) string {
				if f.ThinID != nil && *f.ThinID == id {
					return name
				}
				return ""
			}})
			return err
		}
		mustFail(t, adopt(uint64(strange), "far"), layer.ErrDamaged)
		must(t, x.thin().Delete(thinpool.ID(strange)))
		mustFail(t, adopt(uint64(web.ID), ".template"), layer.ErrInvalid)
		cut := errors.New("cut short here")
		fault.Set(func(name string) error {
			pooltest.Reached(name)
			if name == "pool.mend.adopted" {
				return cut
			}
			return nil
		})
		err = adopt(uint64(web.ID), "found")
		fault.Set(nil)
		if !errors.Is(err, cut) {
			t.Errorf("it was not interrupted: %v", err)
		}
		n := node(t, e, "found") // it was recorded
		if n.Size != web.Size || n.FS != web.FS || n.ID != web.ID || !n.Foreign {
			t.Errorf("adopted %+v, was %+v", n, web)
		}
		must(t, s.Trust(ctx, "found"))
		wantFiles(t, s, "found", baseFiles)
		r := checkPool(t, e)
		must(t, x.mendAll())
		if r.Count(pool.NeedsPerson) < 2 { // the layer and the template
			t.Errorf("found %+v", r.Findings)
		}
		wantFound(t, e)
	})
}

// mendAll has everything mended that can be.
func (x tamperer) mendAll() error {
	_, err := pool.Check(pooltest.Context(x.t), x.e.Dirs, x.e.Name, pool.CheckOptions{Mend: func(pool.Finding) bool { return true }})
	return err
}
