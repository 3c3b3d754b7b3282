package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointGrowRecorded = fault.New("pool.grow.recorded")
	pointGrowBacking  = fault.New("pool.grow.backing")
	pointGrowLinear   = fault.New("pool.grow.linear")
	pointGrowTable    = fault.New("pool.grow.table")
)

// figures are what a pool is and could be at one moment, under the grow lock.
type figures struct {
	record metadata.Pool
	status thinpool.PoolStatus
	info   devmapper.Info
	room   Room
}

// metadataBlocks is how much of the metadata the pool should have in its table, in blocks.
func (f *figures) metadataBlocks() int64 {
	return min(f.room.MetadataSize-f.record.Backing.MetadataHeld, int64(thinpool.MaxMetadataSize)) / thinpool.MetadataBlockSize
}

// withFigures runs fn under the grow lock, with what the running pool is at that moment. What somebody left half done who died
// while he changed the tables is finished first.
func (s *Session) withFigures(ctx context.Context, fn func(backing, *figures) error) error {
	b, err := s.p.backing()
	if err != nil {
		return err
	}
	f := &figures{}
	if f.room, err = s.lockRoom(ctx, b); err != nil {
		return err
	}
	defer s.unlock(offsetGrow)
	err = s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		f.record, err = tx.Pool()
		return err
	})
	if err != nil {
		return err
	}
	if f.status, f.info, err = s.Thin.StatusInfo(); err != nil {
		return err
	}
	if err := s.p.growable(f.status); err != nil {
		return err
	}
	// What became larger by somebody else's hand, or in a growth that died, may not have reached the devices that lie on it.
	if f.room.DataSize/s.p.record.BlockSize > int64(f.status.TotalData) || f.metadataBlocks() > int64(f.status.TotalMetadata) {
		if err := s.growBacking(ctx, b, f.room.DataSize, f.room.MetadataSize); err != nil {
			return err
		}
	}
	if err := s.refit(f, wish{}); err != nil {
		return err
	}
	return fn(b, f)
}

// slowRoom is a backing that asks programs for its room, which may take long, and knows without them whether that still holds.
type slowRoom interface{ holds(Room) bool }

// lockRoom takes the grow lock, and returns the room that the backing has under it. Programs are asked before, so that those who need the
// lock to go on, such as deletions in a pool that is full, do not wait for them; only of a backing that keeps changing while it is asked
// they are asked under the lock.
func (s *Session) lockRoom(ctx context.Context, b backing) (room Room, err error) {
	lock := func() error {
		if err := s.holder.Lock(ctx, at(offsetGrow), lockfile.Exclusive); err != nil {
			return fmt.Errorf("pool %q: %w", s.p.files.name, err)
		}
		return nil
	}
	const tries = 3
	slow, ok := b.(slowRoom)
	for range tries {
		if !ok {
			break
		}
		if room, err = b.room(ctx); err != nil {
			return room, err
		}
		if err := lock(); err != nil {
			return room, err
		}
		if slow.holds(room) {
			return room, nil
		}
		s.unlock(offsetGrow)
	}
	if err := lock(); err != nil {
		return room, err
	}
	if room, err = b.room(ctx); err != nil {
		s.unlock(offsetGrow)
	}
	return room, err
}

// growable is ErrDamaged of a pool that the kernel would not let grow: it says nothing and leaves it as it is.
func (p *Pool) growable(st thinpool.PoolStatus) error {
	if st.NeedsCheck || st.Mode == thinpool.ModeFail || st.Mode == thinpool.ModeError {
		return p.unwritable(st)
	}
	return nil
}

// growTo makes data and metadata that large, in bytes of the backing; what is not larger than they are stays. The larger sizes are
// recorded first, then the backing grows, then the tables. The grow lock is held.
func (s *Session) growTo(ctx context.Context, b backing, f *figures, data, meta int64) error {
	if data <= f.room.DataSize {
		data = 0
	}
	if meta <= f.room.MetadataSize {
		meta = 0
	}
	if data == 0 && meta == 0 {
		return nil
	}
	before := f.record.Backing
	if err := s.recordSizes(ctx, f, func(r *metadata.Backing) {
		r.DataSize = max(r.DataSize, data)
		if meta > 0 {
			r.MetadataSize = max(r.MetadataSize, meta)
			r.MetadataHeld = heldAgain(f, meta)
		}
	}); err != nil {
		return err
	}
	if err := pointGrowRecorded.Hit(); err != nil {
		return errors.Join(err, s.recordBack(ctx, f, before))
	}
	if err := s.growBacking(ctx, b, data, meta); err != nil {
		return errors.Join(err, s.recordBack(ctx, f, before))
	}
	if err := pointGrowBacking.Hit(); err != nil {
		return err
	}
	room, err := b.room(ctx)
	if err != nil {
		return err
	}
	f.room = room
	if meta > 0 { // in units of its own
		if err := s.growSpare(ctx, room.MetadataSize); err != nil {
			return err
		}
	}
	if room.DataSize > f.record.Backing.DataSize || room.MetadataSize > f.record.Backing.MetadataSize {
		if err := s.recordDevices(ctx, f); err != nil {
			return err
		}
	}
	return s.refit(f, wish{})
}

// recordBack records what the devices have after a growth that failed: part of it, or nothing. That this fails too costs nothing, as
// whoever starts the pool takes the devices as they are.
func (s *Session) recordBack(ctx context.Context, f *figures, before metadata.Backing) error {
	ctx, cancel := UndoContext(ctx)
	defer cancel()
	b, err := s.p.backing()
	if err != nil {
		return err
	}
	room, err := b.room(ctx)
	if err != nil {
		return err
	}
	f.room = room
	return s.recordSizes(ctx, f, func(r *metadata.Backing) {
		r.DataSize, r.MetadataSize = room.DataSize, room.MetadataSize
		if room.MetadataSize <= before.MetadataSize {
			r.MetadataHeld = before.MetadataHeld
		}
	})
}

// recordDevices records the sizes that the devices have.
func (s *Session) recordDevices(ctx context.Context, f *figures) error {
	return s.recordSizes(ctx, f, func(r *metadata.Backing) { r.DataSize, r.MetadataSize = f.room.DataSize, f.room.MetadataSize })
}

func (s *Session) recordSizes(ctx context.Context, f *figures, change func(*metadata.Backing)) error {
	return s.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := s.CheckLocks(); err != nil {
			return err
		}
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		if r.State != metadata.PoolReady {
			return fmt.Errorf("pool %q is being destroyed: %w", r.Name, errs.ErrNotFound)
		}
		change(&r.Backing)
		f.record = r
		return tx.PutPool(r)
	})
}

// noRoom is ErrNoSpace with what there is.
func (s *Session) noRoom(what string, want, have, most, free int64) error {
	err := fmt.Errorf("no room for %s of %s: it has %s and can have %s at most: %w", what, inMiB(want), inMiB(have), inMiB(most), errs.ErrNoSpace)
	return errs.WithHint(err, s.p.roomHint(free))
}

// roomHint says where the backing gets its room from.
func (p *Pool) roomHint(free int64) string {
	switch p.record.Backing.Type {
	case BackingLoopback:
		return fmt.Sprintf("the file system of %s has %s free, of which a sparse data file may need a part already", p.files.dir(), inMiB(free))
	case BackingLVM:
		return fmt.Sprintf("the volume group has %s free: vgextend adds a disk to it", inMiB(free))
	}
	return "the pool grows when its devices do"
}
