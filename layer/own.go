package layer

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// Moment is what tells whether a reading of the pool's metadata may be out of date. Equal ones mean that neither records nor the number of blocks
// in use have changed.
type Moment struct {
	Records  uint64 // version of the records
	Metadata uint64 // the pool's transaction id
	Data     uint64 // blocks in use
}

// Moment asks the pool for its present one.
func (s *Store) Moment(ctx context.Context) (Moment, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return Moment{}, err
	}
	defer o.Exit()
	return o.moment()
}

func (o *op) moment() (Moment, error) {
	version, err := o.Records.Version()
	return Moment{Records: version, Metadata: o.Status.TransactionID, Data: o.Status.UsedData}, err
}

// Owned is what a node has for itself, or why that cannot be told.
type Owned = pool.Owned

// Own tells how many bytes in the pool each of the named nodes has that its parent has not: what was written into it, overwrites included.
// Nodes that are not there are left out, and one whose metadata is damaged has an error of its own. The metadata is read once, as of the moment that is returned, and of what parent and child share nothing.
func (s *Store) Own(ctx context.Context, names []string) (map[string]Owned, Moment, error) {
	own, at, err := s.own(ctx, names)
	if err != nil {
		return nil, at, fmt.Errorf("measure nodes: %w", pool.KernelError(err))
	}
	return own, at, nil
}

func (s *Store) own(ctx context.Context, names []string) (map[string]Owned, Moment, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return nil, Moment{}, err
	}
	defer o.Exit()
	at, err := o.moment()
	if err != nil {
		return nil, at, err
	}
	pairs, err := o.pairs(ctx, names)
	if err != nil {
		return nil, at, err
	}
	own, err := o.Own(ctx, pairs)
	return own, at, err
}

func (o *op) pairs(ctx context.Context, names []string) (map[string]pool.Descent, error) {
	pairs := make(map[string]pool.Descent, len(names))
	err := o.view(ctx, func(tx *metadata.Tx) error {
		for _, name := range names {
			n, err := tx.Node(name)
			if err != nil {
				continue // it was removed meanwhile
			}
			p := pool.Descent{Of: n.ID}
			if n.Parent != 0 {
				parent, err := tx.NodeByKey(n.Parent)
				if err != nil {
					return err
				}
				p.From = parent.ID
			}
			pairs[name] = p
		}
		return nil
	})
	return pairs, err
}
