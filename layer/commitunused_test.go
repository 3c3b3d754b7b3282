package layer_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A snapshot that somebody has open does not become a layer where it is to be unused, and stays what it is. Of backends it does: a copy of it.
func TestCommitMoveUnused(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "a", "")
	dir := mount(t, s, "a")
	unused := layer.CommitOptions{Move: true, Unused: true}
	_, err := s.Commit(ctx, "a", "l", unused)
	if mustFail(t, err, layer.ErrBusy); !strings.Contains(err.Error(), dir) || !strings.Contains(errs.Hint(err), "dmlayer unmount a") {
		t.Errorf("%v, hint %q", err, errs.Hint(err))
	}
	if _, err := s.Get(ctx, "l"); !errors.Is(err, layer.ErrNotFound) || !isMounted(t, s, "a") {
		t.Errorf("something was done: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "later"), []byte("1"), 0o600))
	_, err = s.Commit(ctx, "a", "copy", layer.CommitOptions{Unused: true})
	must(t, err) // which it lives on beside
	must(t, s.Unmount(ctx, "a"))
	_, err = s.Commit(ctx, "a", "l", unused)
	must(t, err)
	for _, name := range []string{"copy", "l"} {
		wantFiles(t, s, name, map[string]string{"later": "1"})
	}

	makeSnapshot(t, s, "b", "l")
	mount(t, s, "b")
	_, err = s.Commit(ctx, "b", "m", layer.CommitOptions{Move: true})
	must(t, err)
	if _, err := s.Get(ctx, "b"); !errors.Is(err, layer.ErrNotFound) {
		t.Errorf("it is still there: %v", err)
	}
	must(t, s.Unmount(ctx, e.MountPoint("b")))
}
