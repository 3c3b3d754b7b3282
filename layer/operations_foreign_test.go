package layer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
)

// foreignOperations are the operations on what a machine had.
func foreignOperations() []operation {
	foreign := func(t testing.TB, w *world) {
		w.snapshot(t)
		asVM(t, w.s, w.name("s"), func(string) {})
	}
	isForeign := func(ctx context.Context, w *world, suffix string) (bool, error) {
		n, err := w.s.Get(ctx, w.name(suffix))
		return n.Foreign, err
	}
	// A layer is there only once its file system was checked.
	committed := func(ctx context.Context, w *world) (bool, error) {
		ok, err := made("l", snapFiles)(ctx, w)
		if !ok || err != nil {
			return ok, err
		}
		if f, err := isForeign(ctx, w, "l"); f || err != nil {
			return false, errors.Join(err, fmt.Errorf("the layer is foreign: %v", f))
		}
		return true, nil
	}
	run := func(move bool) func(context.Context, *layer.Store, string) error {
		return func(ctx context.Context, s *layer.Store, p string) error {
			_, err := s.Commit(ctx, p+"s", p+"l", layer.CommitOptions{Move: move, Trust: true})
			return err
		}
	}
	return []operation{
		{
			name: "trust", prepare: foreign,
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Trust(ctx, p+"s") },
			done: func(ctx context.Context, w *world) (bool, error) {
				f, err := isForeign(ctx, w, "s")
				if f || err != nil {
					return false, err
				}
				return true, snapshotWhole(ctx, w)
			},
		},
		{name: "commit foreign", prepare: foreign, run: run(false), done: committed, again: layer.ErrExists},
		{name: "move foreign", prepare: foreign, run: run(true), done: committed, again: layer.ErrNotFound},
	}
}
