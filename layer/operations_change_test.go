package layer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func commit(move bool) func(context.Context, *layer.Store, string) error {
	return func(ctx context.Context, s *layer.Store, p string) error {
		_, err := s.Commit(ctx, p+"s", p+"l", layer.CommitOptions{Move: move})
		return err
	}
}

// moved is a done for commits in which the snapshot becomes the layer.
func moved(ctx context.Context, w *world) (bool, error) {
	ok, err := made("l", snapFiles)(ctx, w)
	if err != nil {
		return false, err
	}
	left, err := w.exists(ctx, w.name("s"))
	if err == nil && left == ok {
		err = fmt.Errorf("snapshot there: %v, layer there: %v", left, ok)
	}
	if err == nil && left {
		err = snapshotWhole(ctx, w)
	}
	return ok, err
}

func committingOperations() []operation {
	free := func(t testing.TB, w *world) { w.snapshot(t) }
	used := func(t testing.TB, w *world) { w.mounted(t) }
	return []operation{
		{name: "commit", prepare: free, run: commit(false), done: and(made("l", snapFiles), snapshotWhole), again: layer.ErrExists},
		{name: "commit mounted", onXFS: true, prepare: used, run: commit(false), done: and(made("l", snapFiles), stillMounted), again: layer.ErrExists},
		{name: "move", onXFS: true, prepare: free, run: commit(true), done: moved, again: layer.ErrNotFound},
		{
			name: "move mounted", onXFS: true, prepare: used, run: commit(true), again: layer.ErrNotFound,
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := moved(ctx, w)
				if err != nil {
					return ok, err
				}
				// Whoever had it mounted keeps his files, whatever they belong to now.
				return ok, sameFiles("mount of the snapshot", w.e.MountPoint(w.name("s")), snapFiles)
			},
		},
		{
			name: "reset", prepare: free, again: nil,
			run:  func(ctx context.Context, s *layer.Store, p string) error { return s.Reset(ctx, p+"s", "") },
			done: eitherFiles(snapFiles, baseFiles),
		},
		{
			name: "reset to layer", prepare: free, again: nil,
			run:  func(ctx context.Context, s *layer.Store, p string) error { return s.Reset(ctx, p+"s", "top") },
			done: eitherFiles(snapFiles, topFiles),
		},
	}
}

// eitherFiles is a done for what changes a snapshot's content.
func eitherFiles(before, after map[string]string) func(context.Context, *world) (bool, error) {
	return func(ctx context.Context, w *world) (bool, error) {
		err := w.holds(ctx, w.name("s"), after)
		if err == nil {
			return true, nil
		}
		if w.holds(ctx, w.name("s"), before) == nil {
			return false, nil
		}
		return false, err
	}
}

const grown = 1280 << 20

func changingOperations() []operation {
	resize := func(ctx context.Context, s *layer.Store, p string) error { return s.Resize(ctx, p+"s", grown) }
	resized := func(ctx context.Context, w *world) (bool, error) {
		n, err := w.s.Get(ctx, w.name("s"))
		return n.Size == grown, err
	}
	return []operation{
		{
			name: "resize", onXFS: true, prepare: func(t testing.TB, w *world) { w.snapshot(t) }, run: resize,
			done: and(resized, func(ctx context.Context, w *world) error {
				if err := snapshotWhole(ctx, w); err != nil {
					return err
				}
				return w.spaceFollowsSize(ctx)
			}),
		},
		{
			name: "resize mounted", onXFS: true, prepare: func(t testing.TB, w *world) { w.mounted(t) }, run: resize,
			done: and(resized, stillMounted),
		},
		{
			name: "rename", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Rename(ctx, p+"s", p+"r") },
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := made("r", snapFiles)(ctx, w)
				if err != nil || ok {
					return ok, err
				}
				return false, snapshotWhole(ctx, w)
			},
			again: layer.ErrNotFound,
		},
	}
}

// spaceFollowsSize checks that a mount of the snapshot has the file system that its size promises.
func (w *world) spaceFollowsSize(ctx context.Context) error {
	n, err := w.s.Get(ctx, w.name("s"))
	if err != nil {
		return err
	}
	m, err := w.s.Mount(ctx, w.name("s"), "", layer.MountOptions{})
	if err != nil {
		return err
	}
	have, err := pooltest.FSSize(m.Dir)
	if err == nil && have < n.Size-n.Size/8 {
		err = fmt.Errorf("the file system has %d bytes, the node %d", have, n.Size)
	}
	return errors.Join(err, w.s.Unmount(ctx, w.name("s")))
}

func recordOperations() []operation {
	return []operation{
		{
			name: "label", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				return s.Label(ctx, p+"s", map[string]string{"k": "v"}, []string{"absent"})
			},
			done: and(func(ctx context.Context, w *world) (bool, error) {
				n, err := w.s.Get(ctx, w.name("s"))
				return n.Labels["k"] == "v", err
			}, snapshotWhole),
		},
		{
			name: "documents", prepare: func(t testing.TB, w *world) {},
			run: func(ctx context.Context, s *layer.Store, p string) error {
				return s.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
					return tx.Put(layer.Document{Kind: "test", Key: p, Layers: []string{"top"}, Data: []byte(`{"n":1}`)})
				})
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				d, err := w.s.Document(ctx, "test", w.p)
				if errors.Is(err, layer.ErrNotFound) {
					return false, nil
				}
				if err == nil && (len(d.Layers) != 1 || d.Layers[0] != "top" || string(d.Data) != `{"n":1}`) {
					err = fmt.Errorf("document %+v", d)
				}
				return true, err
			},
		},
		{
			name: "back up", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, _ string) error { return s.Backup(ctx) },
			done: and(func(_ context.Context, w *world) (bool, error) {
				return backedUp(w.e, w.name("s"))
			}, snapshotWhole),
		},
		{
			name: "prune",
			prepare: func(t testing.TB, w *world) {
				makeLayer(t, w.s, w.name("l1"), "base", nil)
				makeLayer(t, w.s, w.name("l2"), w.name("l1"), nil)
			},
			run: func(ctx context.Context, s *layer.Store, _ string) error {
				_, err := s.Prune(ctx, false)
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				first, err := w.exists(ctx, w.name("l1"))
				if err != nil {
					return false, err
				}
				second, err := w.exists(ctx, w.name("l2"))
				if err == nil && second && !first {
					err = errors.New("a child without its parent")
				}
				return !first, errors.Join(err, w.holds(ctx, "top", topFiles))
			},
		},
	}
}
