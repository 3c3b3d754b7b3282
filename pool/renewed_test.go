package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// cutAt has whatever reaches a crash point fail there.
func cutAt(t testing.TB, point string) (again func()) {
	t.Helper()
	fault.Set(func(name string) error {
		if name == point {
			return errCut
		}
		return nil
	})
	t.Cleanup(func() { fault.Set(nil) })
	return func() { fault.Set(nil) }
}

var errCut = errors.New("cut short here")

func codes(r pool.CheckReport) (list []string) {
	for _, f := range r.Findings {
		list = append(list, f.Code)
	}
	return list
}

// A renewal that was recorded and not finished is said by a check, which looks at what counts, and finished by an import.
func TestUnfinishedRenewal(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	for _, point := range []string{"pool.renew.recorded", "pool.renew.side-files"} {
		for _, lost := range []bool{false, true} {
			cut := cutAt(t, point)
			_, err := pool.Renew(ctx, e.Dirs, e.Name, nil)
			cut()
			if !errors.Is(err, errCut) {
				t.Fatalf("%s: %v", point, err)
			}
			r, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
			must(t, err)
			if got := codes(r); !slices.Equal(got, []string{"metadata-unfinished"}) {
				t.Errorf("%s: found %+v", point, r.Findings)
			}
			if lost { // the records of the new life, which are in no copy yet: the old life goes on
				must(t, os.Remove(e.Store()))
				imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)})
			} else {
				_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e)})
				mustFail(t, err, errs.ErrExists)
			}
			wantPool(t, e)
			if text, err := filepath.Glob(filepath.Join(folder(e), "blobs", "*", "test")); err != nil || len(text) != 1 {
				t.Errorf("%s: side files %v, %v", point, text, err)
			}
			must(t, e.Check(ctx))
			must(t, pool.Stop(ctx, e.Dirs, e.Name))
		}
	}
}

// Records from before a renewal name other devices: no force has them imported. Without others, the devices are kept.
func TestImportFromBeforeRenewal(t *testing.T) {
	e := newPool(t)
	ctx := pooltest.Context(t)
	fillPool(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	old := backups(t, e)[0]
	_, err := pool.Renew(ctx, e.Dirs, e.Name, nil)
	must(t, err)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e), Records: old})
	if mustFail(t, err, errs.ErrDamaged); err != nil && (!strings.Contains(err.Error(), "renewal") || !strings.Contains(errs.Hint(err), "--empty")) {
		t.Errorf("%v; hint %q", err, errs.Hint(err))
	}
	imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e)}) // the copies of after it
	wantPool(t, e)
	// An import changes the tag of the transactions, not the life.
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	list := backups(t, e)
	must(t, os.Rename(old, filepath.Join(t.TempDir(), "old")))
	if r := imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e), Records: list[1]}); r.Nodes != 4 {
		t.Errorf("imported with %+v", r)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	kept := filepath.Join(t.TempDir(), "kept")
	must(t, os.Rename(list[1], kept))
	dropBackups(t, e)
	var told pool.ImportReport
	_, err = pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: folder(e), Empty: true, Confirm: func(r pool.ImportReport) error {
		told = r
		return nil
	}})
	must(t, err)
	if told.Nodes != 0 || len(told.Orphans) < 4 {
		t.Errorf("imported with %+v", told)
	}
	r, err := pool.Check(ctx, e.Dirs, e.Name, pool.CheckOptions{})
	must(t, err)
	if got := codes(r); len(got) != len(told.Orphans)+1 || !slices.Contains(got, "orphan") || !slices.Contains(got, "side-files-orphan") {
		t.Errorf("found %q", got)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	imported(t, e.Dirs, pool.ImportOptions{Dir: folder(e), Records: kept})
	wantPool(t, e)
}
