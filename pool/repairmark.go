package pool

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var pointRepairMarked = fault.New("pool.repair.marked")

// recordLosses tells the records what the repaired metadata lacks, before it takes its place: nothing else would know that a node is
// not what it was. It stands there with what the nodes were before, until settleLosses has seen which metadata is in the place.
func (r *repairer) recordLosses(ctx context.Context) error {
	if len(r.report.Losses) == 0 {
		return nil
	}
	var uuid [16]byte
	_, _ = rand.Read(uuid[:]) // it cannot fail
	if err := rewrite(r.p.files.spare(), func(f thinmeta.Storage) error { return thinmeta.SetUUID(f, uuid) }); err != nil {
		return err
	}
	now := time.Now().UTC().Truncate(time.Second)
	err := r.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := r.CheckLocks(); err != nil {
			return err
		}
		repair := metadata.Repair{Metadata: hex.EncodeToString(uuid[:])}
		for _, l := range r.report.Losses {
			before, err := markLoss(tx, l, now)
			if err != nil {
				return err
			}
			if before != nil {
				repair.Before = append(repair.Before, *before)
			}
		}
		p, err := tx.Pool()
		if err != nil || repair.Before == nil {
			return err
		}
		p.Repair = &repair
		return tx.PutPool(p)
	})
	if err != nil {
		return fmt.Errorf("record what is lost: %w", err)
	}
	return pointRepairMarked.Hit()
}

// markLoss marks the node that a thin device is of, and returns what it was, nil where no node is. A template gives its name to one that is made when it is needed.
func markLoss(tx *metadata.Tx, l Loss, when time.Time) (*metadata.BeforeRepair, error) {
	if !tx.Named(l.ID) || tx.Tombstone(l.ID) {
		return nil, nil
	}
	n, err := tx.NodeByID(l.ID)
	if err != nil {
		return nil, err
	}
	before := metadata.BeforeRepair{ID: n.ID, Name: n.Name, Lost: n.Lost}
	lost := metadata.Loss{Blocks: l.Blocks, Of: l.Of, Since: when}
	if earlier := n.Lost; earlier != nil { // by an earlier repair, after which it had so much less
		lost = metadata.Loss{Blocks: earlier.Blocks + l.Blocks, Of: max(earlier.Of, l.Of), Since: earlier.Since}
		if earlier.Of == 0 || l.Of == 0 {
			lost.Of = 0
		} else {
			lost.Blocks = min(lost.Blocks, lost.Of)
		}
	}
	n.Lost = &lost
	if n.Kind == metadata.KindTemplate {
		n.Name = asideName(n.ID)
	}
	return &before, tx.PutNode(n)
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
