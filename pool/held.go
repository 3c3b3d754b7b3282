package pool

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var pointHeldRecorded = fault.New("pool.held.recorded")

const (
	// heldParts is into how many parts the metadata that is held back is divided: writers who are at work while something is deleted
	// may eat the one that was added for that.
	heldParts = 4
	// minHeldPart is how much is added at least, in bytes: a deletion changes some dozen blocks before it frees any.
	minHeldPart = 256 << 10
)

// heldOf is how much of a metadata backing stays outside the pool's table, in bytes.
func heldOf(size int64) int64 { return min(size*heldPercent/100, maxHeld) &^ 4095 }

// heldAgain is how much of the metadata is held back once it has grown to size: as much as of a new pool, but not more than half of what
// was added, as the table never becomes smaller.
func heldAgain(f *figures, size int64) int64 {
	held := f.record.Backing.MetadataHeld
	return max(held, min(heldOf(size), held+(size-f.room.MetadataSize)/2)) &^ 4095
}

// outOfMetadata tells that a pool is read-only for want of metadata, and for nothing else.
func outOfMetadata(st thinpool.PoolStatus) bool {
	return st.Mode == thinpool.ModeReadOnly && !st.NeedsCheck && st.TotalMetadata > 0 && st.FreeMetadata() == 0
}

// MakeDeletable lets a deletion go on in a pool whose metadata writers have eaten: it adds a part of the metadata that is held
// back for that, whereupon the kernel lets the pool write again. Anything else it leaves as it is, and costs nothing. Where
// nothing is held any more it is ErrNoSpace.
func (s *Session) MakeDeletable(ctx context.Context) error {
	if !outOfMetadata(s.Status) {
		return nil
	}
	err := s.withFigures(ctx, func(_ backing, f *figures) error {
		for outOfMetadata(f.status) {
			held := f.record.Backing.MetadataHeld
			if held == 0 {
				return s.p.metadataFull()
			}
			part := max(held/heldParts, heldOf(f.room.MetadataSize)/heldParts, minHeldPart) &^ 4095
			if err := s.recordSizes(ctx, f, func(r *metadata.Backing) { r.MetadataHeld = max(r.MetadataHeld-part, 0) }); err != nil {
				return err
			}
			if err := pointHeldRecorded.Hit(); err != nil {
				return err
			}
			if err := s.refit(f, wish{}); err != nil {
				return err
			}
			s.p.log.Info("added metadata that is kept for deleting", "pool", s.p.files.name, "left", f.record.Backing.MetadataHeld)
		}
		s.Status = f.status
		return nil
	})
	if err != nil {
		return fmt.Errorf("pool %q: %w", s.p.files.name, kernelError(err))
	}
	return nil
}

// metadataFull is the error of what a pool without metadata cannot do.
func (p *Pool) metadataFull() error {
	err := fmt.Errorf("pool %q is out of metadata space: %w", p.files.name, errs.ErrNoSpace)
	return errs.WithHint(err, "dmlayer pool extend --metadata +SIZE makes it larger; removing nodes (dmlayer rm) works, too")
}
