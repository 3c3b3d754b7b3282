package layer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// testClaim is by what the tests claim nodes.
const testClaim = "test-claim"

// noted is a document that comes and goes with a node.
func noted(p string) func(*layer.DocTx) error {
	return func(tx *layer.DocTx) error { return tx.Put(layer.Document{Kind: "test", Key: p, Data: []byte("{}")}) }
}

func forgotten(p string) func(*layer.DocTx) error {
	return func(tx *layer.DocTx) error { return tx.Delete("test", p) }
}

// isNoted checks that the document is there if and only if it should be.
func (w *world) isNoted(ctx context.Context, want bool) error {
	_, err := w.s.Document(ctx, "test", w.p)
	if err != nil && !errors.Is(err, layer.ErrNotFound) {
		return err
	}
	if (err == nil) != want {
		return fmt.Errorf("document is there: %v, want %v", err == nil, want)
	}
	return nil
}

func (w *world) claimed(t testing.TB) {
	w.snapshot(t)
	_, err := w.s.Activate(pooltest.Context(t), w.name("s"), layer.ClaimOptions{Claim: testClaim})
	must(t, err)
}

// claimingOperations are those for users who mount by themselves.
func claimingOperations() []operation {
	prepare := func(ctx context.Context, s *layer.Store, p string) error {
		_, d, err := s.Prepare(ctx, p+"s", layer.SnapshotOptions{Parent: "top", Size: grown}, layer.ClaimOptions{Claim: testClaim}, noted(p))
		if err == nil {
			_, err = os.Stat(d.Path)
		}
		return err
	}
	return []operation{
		{
			name: "prepare", onXFS: true, prepare: nothing, run: prepare, again: layer.ErrExists,
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := made("s", topFiles)(ctx, w)
				return ok, errors.Join(err, w.isNoted(ctx, ok))
			},
		},
		{
			name: "activate", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				d, err := s.Activate(ctx, p+"s", layer.ClaimOptions{Claim: testClaim})
				if err == nil {
					_, err = os.Stat(d.Path)
				}
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				i, err := w.s.Inspect(ctx, w.name("s"))
				return len(i.Claims) > 0, err
			},
		},
		{
			name: "deactivate", prepare: func(t testing.TB, w *world) { w.claimed(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Deactivate(ctx, p+"s", testClaim) },
			done: func(ctx context.Context, w *world) (bool, error) {
				i, err := w.s.Inspect(ctx, w.name("s"))
				if err == nil && len(i.Claims) == 0 && i.State != layer.StateInactive {
					err = errors.New("not claimed, and active")
				}
				return len(i.Claims) == 0, err
			},
		},
		{
			name: "move claimed", onXFS: true, prepare: func(t testing.TB, w *world) { w.claimed(t) }, again: layer.ErrNotFound,
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.Commit(ctx, p+"s", p+"l", layer.CommitOptions{Move: true, Claim: testClaim, Documents: noted(p)})
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := moved(ctx, w)
				return ok, errors.Join(err, w.isNoted(ctx, ok))
			},
		},
		{
			name: "drop", again: layer.ErrNotFound,
			prepare: func(t testing.TB, w *world) { must(t, prepare(pooltest.Context(t), w.s, w.p)) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.Drop(ctx, p+"s", testClaim, forgotten(p))
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := w.exists(ctx, w.name("s"))
				return !ok, errors.Join(err, w.isNoted(ctx, ok))
			},
		},
	}
}
