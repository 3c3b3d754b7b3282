package pool

import (
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

const (
	windowIDs = 64 // thin ids reserved at a time
	maxThinID = 1<<24 - 1

	// The kernel's count of create_snap messages has 24 bits and wraps without a word, after which
	// blocks alias (dm-facts, fact 2). Snapshots are refused this far before.
	snapshotEnd   = 1 << 24
	snapshotLimit = snapshotEnd - 1<<16
	idLimit       = maxThinID - windowIDs
)

// Life is how much a pool has used up of what the kernel lets a pool have in its life, removed or not. Both count up with
// each node that is made.
type Life struct {
	Snapshots, SnapshotLimit uint64
	IDs, IDLimit             uint64
}

// agedPercent is the part of a life from which on its end is worth a word.
const agedPercent = 90

// Aged tells whether the end is near.
func (l Life) Aged() bool {
	near := func(n, limit uint64) bool { return limit > 0 && n >= limit/100*agedPercent }
	return near(l.Snapshots, l.SnapshotLimit) || near(l.IDs, l.IDLimit)
}

// spent tells whether a window of ids, with a snapshot for each, would go beyond the end.
func (l Life) spent() bool { return l.Snapshots+windowIDs > l.SnapshotLimit || l.IDs > l.IDLimit }

func (l Life) String() string {
	return fmt.Sprintf("%d of %d snapshots and %d of %d thin ids are used up", l.Snapshots, l.SnapshotLimit, l.IDs, l.IDLimit)
}

func lifeOf(r metadata.Pool, taken uint64) Life {
	return Life{Snapshots: max(taken, r.SnapshotsTaken), SnapshotLimit: snapshotLimit, IDs: uint64(r.HighID), IDLimit: idLimit}
}

// LifeTag tells the lives of a pool apart, of which each renewal begins one: thin ids mean something else in each. An import
// changes it too, and keeps the ids.
func LifeTag(r metadata.Pool) uint64 { return r.TransactionID >> tagBits }

// Life is what the record said of it when the pool was opened, which each reservation of ids and each start brings up to
// date.
func (p *Pool) Life() Life { return lifeOf(p.record, 0) }

// ErrSpent says that a pool can take no more snapshots in its life, or has no more thin ids.
var ErrSpent = errors.New("the pool has used up its snapshots or thin ids")

func (p *Pool) spent(l Life) error {
	err := fmt.Errorf("pool %q: %w: %s: %w", p.files.name, ErrSpent, l, errs.ErrNoSpace)
	return errs.WithHint(err, l.Advice(p.files.name))
}

// Advice is what can be done about it.
func (l Life) Advice(pool string) string {
	if l.Snapshots >= snapshotEnd {
		return beyondAdvice
	}
	return "dmlayer pool renew " + pool + " makes the counts begin anew"
}

// beyondAdvice is what can be done about a pool of which somebody has taken so many snapshots that the kernel counts from zero again.
const beyondAdvice = "the kernel cannot tell any more which of its blocks are shared: copy what is needed of its nodes, mounted read-only, to another pool"
