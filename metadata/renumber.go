package metadata

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Renumber gives the records of a copy other thin ids and keys, both from the bottom: the i-th of ids, which rise from 0 on,
// becomes id i, and keys stay in their order. What the pool's record says of ids is the caller's. A record whose id
// or parent is missing is ErrDamaged.
func (c *Copy) Renumber(ids []ThinID) error {
	fresh := func(what string, id ThinID) (ThinID, error) {
		i, ok := slices.BinarySearch(ids, id)
		if !ok {
			return 0, fmt.Errorf("renumber %s: thin id %d is not among those in use: %w", what, id, errs.ErrDamaged)
		}
		return ThinID(i), nil
	}
	slices.SortFunc(c.Nodes, func(a, b Node) int { return cmp.Compare(a.Key, b.Key) })
	keys := map[Key]Key{0: 0}
	for i, n := range c.Nodes {
		keys[n.Key] = Key(i + 1)
	}
	var err error
	for i := range c.Nodes {
		n := &c.Nodes[i]
		if n.ID, err = fresh(fmt.Sprintf("node %q", n.Name), n.ID); err != nil {
			return err
		}
		parent, ok := keys[n.Parent]
		if !ok {
			return fmt.Errorf("renumber node %q: its parent is missing: %w", n.Name, errs.ErrDamaged)
		}
		n.Key, n.Parent = keys[n.Key], parent
	}
	for i := range c.Tombstones {
		if c.Tombstones[i].ID, err = fresh("a tombstone", c.Tombstones[i].ID); err != nil {
			return err
		}
	}
	for i := range c.Documents {
		d := &c.Documents[i]
		d.Nodes = slices.Clone(d.Nodes)
		for k, node := range d.Nodes {
			key, ok := keys[node]
			if !ok || node == 0 {
				return fmt.Errorf("renumber %s %q: a node of it is missing: %w", d.Kind, d.Key, errs.ErrDamaged)
			}
			d.Nodes[k] = key
		}
	}
	return nil
}

// Replace puts the records of a copy in the place of all that there are.
func (tx *Tx) Replace(c *Copy) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("replace the records: %w", err)
	}
	for _, name := range allBuckets {
		if string(name) == string(bucketMeta) {
			continue
		}
		if err := tx.b.DeleteBucket(name); err != nil {
			return err
		}
		if _, err := tx.b.CreateBucket(name); err != nil {
			return err
		}
	}
	return c.fill(tx)
}
