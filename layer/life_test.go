package layer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

var fileSystems = []string{"ext4", "xfs"}

// each runs a test on a fresh pool of each file system.
func each(t *testing.T, fn func(t *testing.T, e *pooltest.Env, s *layer.Store)) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			fn(t, e, e.Open(t))
		})
	}
}

// must stops the test at an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustFail(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Fatalf("got %v, want %v", err, class)
	}
}

func makeLayer(t testing.TB, s *layer.Store, name, parent string, files map[string]string) {
	t.Helper()
	_, err := s.CreateLayer(pooltest.Context(t), name, layer.LayerOptions{Parent: parent}, func(_ context.Context, w *layer.LayerWriter) error {
		return writeFiles(w.Root(), files)
	})
	must(t, err)
}

func makeSnapshot(t testing.TB, s *layer.Store, name, parent string) {
	t.Helper()
	_, err := s.CreateSnapshot(pooltest.Context(t), name, layer.SnapshotOptions{Parent: parent})
	must(t, err)
}

func mount(t testing.TB, s *layer.Store, name string) string {
	t.Helper()
	m, err := s.Mount(pooltest.Context(t), name, "", layer.MountOptions{})
	must(t, err)
	return m.Dir
}

func unmount(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	must(t, s.Unmount(pooltest.Context(t), name))
}

func writeFiles(dir string, files map[string]string) error {
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func wantFile(t testing.TB, dir, name, want string) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name))
	must(t, err)
	if string(got) != want {
		t.Fatalf("%s: got %q, want %q", name, got, want)
	}
}

// wantFiles looks at a node through a private mount.
func wantFiles(t testing.TB, s *layer.Store, node string, files map[string]string) {
	t.Helper()
	must(t, s.View(pooltest.Context(t), []string{node}, func(_ context.Context, roots []string) error {
		for name, text := range files {
			wantFile(t, roots[0], name, text)
		}
		entries, err := os.ReadDir(roots[0])
		if err != nil {
			return err
		}
		if len(entries) != len(files) {
			t.Errorf("%s holds %v, want %d files", node, entries, len(files))
		}
		return nil
	}))
}

func TestMainJob(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		makeLayer(t, s, "base", "", map[string]string{"a": "1"})
		makeLayer(t, s, "top", "base", map[string]string{"b": "2"})
		makeSnapshot(t, s, "web", "top")
		dir := mount(t, s, "web")
		wantFile(t, dir, "a", "1")
		must(t, writeFiles(dir, map[string]string{"a": "changed", "c": "3"}))
		_, err := s.Commit(ctx, "web", "committed", layer.CommitOptions{})
		must(t, err)
		must(t, writeFiles(dir, map[string]string{"d": "4"}))
		mustFail(t, s.Remove(ctx, "web"), layer.ErrBusy)
		mustFail(t, s.Remove(ctx, "top"), layer.ErrBusy)
		unmount(t, s, "web")
		wantFiles(t, s, "web", map[string]string{"a": "changed", "b": "2", "c": "3", "d": "4"})
		wantFiles(t, s, "committed", map[string]string{"a": "changed", "b": "2", "c": "3"})
		must(t, s.Reset(ctx, "web", ""))
		wantFiles(t, s, "web", map[string]string{"a": "1", "b": "2"})
		must(t, s.Reset(ctx, "web", "committed"))
		wantFiles(t, s, "web", map[string]string{"a": "changed", "b": "2", "c": "3"})
		mustFail(t, s.Remove(ctx, "committed"), layer.ErrBusy)
		infos, err := s.List(ctx)
		must(t, err)
		if len(infos) != 4 {
			t.Errorf("List: %v", infos)
		}
		must(t, s.Remove(ctx, "web"))
		gone, err := s.Prune(ctx, false)
		must(t, err)
		if len(gone) != 3 {
			t.Errorf("Prune: %v", gone)
		}
	})
}
