package snapshotter

import (
	"context"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/dmlayer/dmlayer/layer"
)

// Views records views of a committed snapshot, or forgets them, all at once and without claims.
func (s *Snapshotter) Views(ctx context.Context, parent string, keys []string, there bool) error {
	return s.store.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
		p, err := get(tx, parent)
		if err != nil {
			return err
		}
		for _, key := range keys {
			r := newRecord(snapshots.KindView, key, parent, nil)
			r.node = p.node
			change := put
			if !there {
				change = remove
			}
			if err := change(tx, r); err != nil {
				return err
			}
		}
		return nil
	})
}

// Measuring begins to measure like one who takes long.
func (s *Snapshotter) Measuring() (end func()) {
	s.measuring <- struct{}{}
	return func() { <-s.measuring }
}
