package layer_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// The name by which a layer from an image is found is its own: it keeps it, and no other node gets it.
func TestNamesOfImages(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	chain, other := strings.Repeat("0a", 32), "sha256-"+strings.Repeat("f", 64)
	name := "sha256-" + chain
	fromImage := layer.LayerOptions{Attrs: map[string]string{"image.chainID": "sha256:" + chain}}
	empty := func(context.Context, *layer.LayerWriter) error { return nil }
	_, err := s.CreateLayer(ctx, name, fromImage, empty)
	must(t, err)
	makeSnapshot(t, s, "s", name)

	for what, do := range map[string]func() error{
		"rename a layer from an image":  func() error { return s.Rename(ctx, name, "mine") },
		"rename it to another":          func() error { return s.Rename(ctx, name, other) },
		"rename a snapshot":             func() error { return s.Rename(ctx, "s", other) },
		"commit":                        func() error { _, err := s.Commit(ctx, "s", other, layer.CommitOptions{}); return err },
		"commit in place":               func() error { _, err := s.Commit(ctx, "s", other, layer.CommitOptions{Move: true}); return err },
		"snapshot":                      func() error { _, err := s.CreateSnapshot(ctx, other, layer.SnapshotOptions{}); return err },
		"a layer without what it holds": func() error { _, err := s.CreateLayer(ctx, other, layer.LayerOptions{}, empty); return err },
		"a layer of another image":      func() error { _, err := s.CreateLayer(ctx, other, fromImage, empty); return err },
	} {
		if err := do(); !errors.Is(err, layer.ErrInvalid) || !strings.Contains(err.Error(), "from an image") {
			t.Errorf("%s: %v", what, err)
		}
	}
	must(t, s.Rename(ctx, "s", other[:len(other)-1])) // only the whole form is one

	// What was renamed before that was refused gets its name back.
	must(t, e.Tamper(ctx, func(tx *metadata.Tx) error {
		n, err := tx.Node(name)
		if err != nil {
			return err
		}
		n.Name = "mine"
		return tx.PutNode(n)
	}))
	mustFail(t, s.Rename(ctx, "mine", other), layer.ErrInvalid)
	must(t, s.Rename(ctx, "mine", name))
}
