package snapshotter_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestRememberedWrongly changes behind a snapshotter's back all that it remembers of keys.
func TestRememberedWrongly(t *testing.T) {
	e, store, s := open(t, pool.Spec{})
	other := snapshotter.New(e.Open(t))
	ctx := pooltest.Context(t)
	anew := func(key, parent string, commit bool) { // the same key for something else
		t.Helper()
		must(t, other.Remove(ctx, key))
		_, err := other.Prepare(ctx, key+"-anew", parent)
		must(t, err)
		if commit {
			must(t, other.Commit(ctx, key, key+"-anew"))
			return
		}
		must(t, other.Remove(ctx, key+"-anew"))
		_, err = other.Prepare(ctx, key, parent)
		must(t, err)
	}
	committed(t, s, "base", "", nil)
	anew("base", "", true)
	m, err := s.Prepare(ctx, "a", "base")
	must(t, err)
	with(t, m, func(dir string) {
		if _, err := os.Lstat(filepath.Join(dir, "base")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the old parent is below: %v", err)
		}
	})
	anew("a", "", false)
	must(t, s.Commit(ctx, "c", "a"))
	if i, err := s.Stat(ctx, "c"); err != nil || i.Parent != "" {
		t.Errorf("committed %+v, %v", i, err)
	}
	anew("c", "base", true)
	m, err = s.View(ctx, "v", "c")
	must(t, err)
	again, err := other.Mounts(ctx, "v")
	if err != nil || again[0].Source != m[0].Source {
		t.Errorf("the view is of %+v, %+v, %v", m, again, err)
	}
	must(t, other.Remove(ctx, "v"))
	_, err = other.Prepare(ctx, "v", "base")
	must(t, err)
	must(t, s.Remove(ctx, "v"))
	must(t, other.Remove(ctx, "c"))
	for _, err := range []error{s.Remove(ctx, "v"), s.Remove(ctx, "c"), s.Commit(ctx, "d", "a")} {
		mustBe(t, err, errdefs.ErrNotFound)
	}
	_, err = s.View(ctx, "w", "c")
	mustBe(t, err, errdefs.ErrNotFound)
	_, err = s.Prepare(ctx, "w", "c")
	mustBe(t, err, errdefs.ErrNotFound)
	must(t, s.Remove(ctx, "base"))
	if nodes, active := count(t, store); nodes != 0 || active != 0 {
		t.Errorf("%d nodes, %d active are left", nodes, active)
	}
}
