package metadata_test

import (
	"context"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// Renumbered records are the same but for ids and keys, are found by them, and leave no trace of the old ones.
func TestRenumber(t *testing.T) {
	s := fullStore(t)
	ctx := context.Background()
	must(t, s.Update(ctx, func(tx *metadata.Tx) error {
		c, err := metadata.CopyOf(tx, taken)
		if err != nil {
			return err
		}
		// The label, all that fullStore names, and one that nothing names.
		if err := c.Renumber([]metadata.ThinID{0, 1, 2, 3, 4, 7, 9}); err != nil {
			return err
		}
		c.Pool.LowID, c.Pool.HighID = 7, 7
		return tx.Replace(c)
	}))
	must(t, s.View(ctx, func(tx *metadata.Tx) error {
		web, err := tx.Node("web")
		if err != nil {
			return err
		}
		late, err := tx.NodeByKey(web.Parent)
		if err != nil {
			return err
		}
		if web.ID != 6 || web.Key != 3 || late.Name != "late" || !web.Foreign || web.Labels["k"] != "v\nw" {
			t.Errorf("web: %+v on %+v", web, late)
		}
		if n, err := tx.NodeByID(6); err != nil || n.Name != "web" {
			t.Errorf("by its id: %+v, %v", n, err)
		}
		if tx.Named(9) || !tx.Tombstone(3) || tx.Named(5) {
			t.Error("ids: 9 or 5 are named, or 3 has no tombstone")
		}
		if c, err := tx.Children(late.Key); err != nil || len(c) != 1 || c[0].Name != "web" {
			t.Errorf("children: %+v, %v", c, err)
		}
		base, err := tx.Node("base")
		if err != nil || len(tx.DocumentsOf(base.Key)) != 1 {
			t.Errorf("documents of %+v: %v", base, err)
		}
		return nil
	}))
	must(t, s.Update(ctx, func(tx *metadata.Tx) error {
		_, err := tx.AddNode(metadata.Node{ID: 7, Name: "next", Kind: metadata.KindLayer, Size: 1 << 30, FS: "ext4", Created: taken})
		return err
	}))
	if text := copyOf(t, s); len(text) == 0 {
		t.Error("no copy can be made")
	}
}

// A record whose id is missing is not lost in silence.
func TestRenumberRefuses(t *testing.T) {
	s := fullStore(t)
	for what, ids := range map[string][]metadata.ThinID{
		"node":      {0, 1, 2, 3, 4},
		"tombstone": {0, 1, 2, 4, 9},
	} {
		must(t, s.View(context.Background(), func(tx *metadata.Tx) error {
			c, err := metadata.CopyOf(tx, taken)
			if err == nil {
				mustFail(t, c.Renumber(ids), errs.ErrDamaged)
			}
			return err
		}))
		if t.Failed() {
			t.Fatal(what)
		}
	}
}
