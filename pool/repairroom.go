package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var pointRepairGrown = fault.New("pool.repair.grown")

// fill writes into the spare what is to take the place of the metadata of that size. What does not fit there otherwise takes what is held back of it, and
// then what the backing can be made to have: the pool itself cannot grow before it is repaired.
func (r *repairer) fill(ctx context.Context, size, held int64) error {
	err := r.fillFor(ctx, size, held, false)
	if held > 0 && errors.Is(err, thinmeta.ErrNoRoom) {
		err = r.fillFor(ctx, size, 0, true)
	}
	if !errors.Is(err, thinmeta.ErrNoRoom) {
		return err
	}
	room, rerr := r.backing.room(ctx)
	if rerr != nil {
		return rerr
	}
	for now := size; errors.Is(err, thinmeta.ErrNoRoom); {
		next := min(now+max(now/2, metadataStep), room.MetadataMax) &^ 4095
		if next <= now {
			err := fmt.Errorf("the repaired metadata does not fit into the %s that it can have at most: %w: %w", inMiB(max(now, room.MetadataMax)), err, errs.ErrNoSpace)
			return errs.WithHint(err, r.p.roomHint(room.Free)+"; "+r.metadataName()+" is as it was. Make room and repeat the repair")
		}
		now, r.report.MetadataSize = next, next
		r.o.Progress("repair with " + inMiB(next) + " of metadata, as it does not fit into " + inMiB(size))
		err = r.fillFor(ctx, next, 0, true)
	}
	return err
}

// fillFor is fill for metadata of that size, of which some is held back. all of it is used, where less is in use now.
func (r *repairer) fillFor(ctx context.Context, size, held int64, all bool) error {
	if err := r.p.files.makeSpare(ctx, size); err != nil {
		return err
	}
	if err := r.p.files.cutSpare(size, held); err != nil {
		return err
	}
	r.size, r.all = size, all
	return r.onLoop(ctx, r.input, true, func(old string) error {
		return r.onLoop(ctx, r.p.files.spare(), false, func(spare string) error { return r.write(ctx, old, spare) })
	})
}

// shrinkSpare gives back what a repair that was not made had taken for the spare.
func (r *repairer) shrinkSpare(size, held int64) error {
	if r.size <= size {
		return nil
	}
	return r.p.files.cutSpare(size, held)
}

// growForRepaired makes the backing as large as the repaired metadata, and records it, before that takes its place. Killed in between, the pool has the old metadata
// with room behind it.
func (r *repairer) growForRepaired(ctx context.Context) error {
	if !r.all {
		return nil
	}
	if !r.inFile { // a file is replaced by the one that is
		if err := r.backing.grow(ctx, 0, r.size); err != nil {
			return err
		}
	}
	err := r.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := r.CheckLocks(); err != nil {
			return err
		}
		p, err := tx.Pool()
		if err != nil {
			return err
		}
		p.Backing.MetadataSize, p.Backing.MetadataHeld = max(p.Backing.MetadataSize, r.size), 0
		return tx.PutPool(p)
	})
	if err != nil {
		return fmt.Errorf("record the larger metadata: %w", err)
	}
	if err := r.readRecord(ctx); err != nil {
		return err
	}
	if r.backing, err = r.p.backing(); err != nil {
		return err
	}
	return pointRepairGrown.Hit()
}
