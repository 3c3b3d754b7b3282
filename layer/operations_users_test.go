package layer_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// userOperations are the operations on counted mounts, and on the content of a node.
func userOperations() []operation {
	use := func(t testing.TB, w *world) {
		w.snapshot(t)
		mountFor(t, w.s, w.name("s"), "one")
	}
	edit := func(_ context.Context, root string) error {
		return os.WriteFile(filepath.Join(root, "e"), []byte("edited"), 0o644)
	}
	edited := map[string]string{"a": "1", "s": "of the snapshot", "e": "edited"}
	return []operation{
		{
			name: "mount for", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.MountFor(ctx, p+"s", "one", layer.UserOptions{})
				return err
			},
			done: and(func(ctx context.Context, w *world) (bool, error) { return w.mountedAt(ctx, w.name("s")) }, snapshotWhole),
		},
		{
			name: "unmount for", prepare: use,
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.UnmountFor(ctx, p+"s", "one") },
			done: and(func(ctx context.Context, w *world) (bool, error) {
				ok, err := w.mountedAt(ctx, w.name("s"))
				return !ok, err
			}, snapshotWhole),
		},
		{
			name: "edit", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Edit(ctx, p+"s", edit) },
			// What was written before a kill may be there or not.
			done: func(ctx context.Context, w *world) (bool, error) {
				if err := w.holds(ctx, w.name("s"), edited); err == nil {
					return true, nil
				}
				return false, snapshotWhole(ctx, w)
			},
		},
	}
}

func mountFor(t testing.TB, s *layer.Store, name, user string) string {
	t.Helper()
	m, err := s.MountFor(pooltest.Context(t), name, user, layer.UserOptions{})
	must(t, err)
	return m.Dir
}

func mustUsers(t testing.TB, s *layer.Store, want ...layer.MountUser) {
	t.Helper()
	have, err := s.MountUsers(pooltest.Context(t))
	must(t, err)
	if len(have) != len(want) {
		t.Fatalf("users %v, want %v", have, want)
	}
	for i := range have {
		if have[i] != want[i] {
			t.Fatalf("users %v, want %v", have, want)
		}
	}
}

func isMounted(t testing.TB, s *layer.Store, name string) bool {
	t.Helper()
	i, err := s.Inspect(pooltest.Context(t), name)
	must(t, err)
	return i.State == layer.StateMounted
}
