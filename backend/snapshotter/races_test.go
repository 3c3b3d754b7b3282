package snapshotter_test

import (
	"context"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// once has something done when a point is reached for the first time.
func once(t testing.TB, point string, do func()) {
	t.Helper()
	var done atomic.Bool
	fault.Set(func(p string) error {
		if p == point && done.CompareAndSwap(false, true) {
			do()
		}
		return nil
	})
	t.Cleanup(func() { fault.Set(nil) })
}

var staged = snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref, "containerd.io/snapshot/parent-chain-id": "sha256:2"})

// What is removed while somebody is about to claim its layer leaves no claim behind, and with it no layer.
func TestRemovedBeforeItsClaim(t *testing.T) {
	_, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	wants := map[string]string{snapshots.LabelSnapshotRef: ref}
	view := func() error { _, err := s.View(ctx, "v", "base"); return err }
	stage := func() error { _, err := s.Prepare(ctx, "v", "", staged); return err }
	remove := func() error { return s.Remove(ctx, "v") }
	commit := func() error { return s.Commit(ctx, "c", "v") }
	for name, c := range map[string]struct{ begin, end func() error }{
		"view": {view, remove}, "staged": {stage, remove}, "staged and committed": {stage, commit},
	} {
		t.Run(name, func(t *testing.T) {
			committed(t, s, "base", "", wants)
			must(t, c.begin())
			once(t, "snapshotter.activate.looked-up", func() { must(t, c.end()) })
			_, err := s.Mounts(ctx, "v")
			mustBe(t, err, errdefs.ErrNotFound)
			if _, active := count(t, store); active != 0 {
				t.Errorf("%d devices are left", active)
			}
			must(t, removeAll(ctx, s))
			if nodes, _ := count(t, store); nodes != 0 {
				t.Errorf("%d nodes are left", nodes)
			}
		})
	}
}

// A layer that the pool had and that goes before a key stands for it is unpacked as if it had never been there.
func TestKnownLayerGoes(t *testing.T) {
	_, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	name := "sha256-" + strings.TrimPrefix(ref, "sha256:")
	wants := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref})
	for what, opt := range map[string]snapshots.Opt{"adopted": wants, "staged": staged} {
		t.Run(what, func(t *testing.T) {
			_, err := store.CreateLayer(ctx, name, layer.LayerOptions{Attrs: map[string]string{"image.chainID": ref}}, func(context.Context, *layer.LayerWriter) error { return nil })
			must(t, err)
			once(t, "snapshotter.prepare.known", func() { must(t, store.Remove(ctx, name)) })
			m, err := s.Prepare(ctx, "extract", "", opt)
			must(t, err)
			if n, err := store.Get(ctx, filepath.Base(m[0].Source)); err != nil || n.Kind != layer.KindSnapshot || m[0].ReadOnly() {
				t.Errorf("%+v, %+v, %v", m, n, err)
			}
			must(t, removeAll(ctx, s))
		})
	}
}
