package pool

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var pointRepairMarked = fault.New("pool.repair.marked")

// recordLosses tells the records what the repaired metadata lacks, before it takes its place: nothing else would know that a node is
// not what it was. Killed in between, the pool has the metadata in which those parts are damaged, and the next repair writes the marks
// anew.
func (r *repairer) recordLosses(ctx context.Context) error {
	if len(r.report.Losses) == 0 {
		return nil
	}
	now := time.Now().UTC().Truncate(time.Second)
	err := r.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := r.CheckLocks(); err != nil {
			return err
		}
		for _, l := range r.report.Losses {
			if err := markLoss(tx, l, now); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record what is lost: %w", err)
	}
	return pointRepairMarked.Hit()
}

// markLoss marks the node that a thin device is of. A template gives its name to one that is made when it is needed.
func markLoss(tx *metadata.Tx, l Loss, when time.Time) error {
	if !tx.Named(l.ID) || tx.Tombstone(l.ID) {
		return nil
	}
	n, err := tx.NodeByID(l.ID)
	if err != nil {
		return err
	}
	lost := metadata.Loss{Blocks: l.Blocks, Of: l.Of, Since: when}
	if before := n.Lost; before != nil { // by an earlier repair, after which it had so much less
		lost = metadata.Loss{Blocks: before.Blocks + l.Blocks, Of: max(before.Of, l.Of), Since: before.Since}
		if before.Of == 0 || l.Of == 0 {
			lost.Of = 0
		}
	}
	n.Lost = &lost
	if n.Kind == metadata.KindTemplate {
		n.Name = asideName(n.ID)
	}
	return tx.PutNode(n)
}

// asidePrefix begins the names of templates that are damaged or not in the pool: nothing starts from them any more, and they stay only while
// nodes descend from them.
const asidePrefix = ".missing-"

func asideName(id metadata.ThinID) string { return fmt.Sprintf("%s%d", asidePrefix, id) }

// SetAside tells whether a node is a template that nothing starts from any more.
func SetAside(n metadata.Node) bool {
	return n.Kind == metadata.KindTemplate && strings.HasPrefix(n.Name, asidePrefix)
}

// setAside gives the name of a template to the next one that is made. Its id lock is held.
func (c *checker) setAside(ctx context.Context, id metadata.ThinID) error {
	err := c.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := c.CheckLocks(); err != nil {
			return err
		}
		n, err := tx.NodeByID(id)
		if err != nil {
			return err
		}
		n.Name = asideName(id)
		return tx.PutNode(n)
	})
	if err != nil {
		return err
	}
	return pointMendAside.Hit()
}
