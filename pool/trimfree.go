package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// What no thin device has, the backing may have all the same: blocks of what was deleted without a discard. The kernel offers no way to discard
// them, and nobody but the kernel may say that a block is free: a moment later it is somebody's. So a thin device of our own takes free
// blocks, a part at a time; then they are ours, are discarded as any removed node's are, and are free again. The kernel looks for free
// blocks from where it found the last one (5.13 and later), so that one part after the other comes to all of them.

var pointTrimTaken = fault.New("pool.trim.taken")

const (
	// maxTaken is how many bytes are taken at once.
	maxTaken = 256 << 20
	// takenParts is into how many parts what is free is divided, of which one is taken at once: others go on writing meanwhile.
	takenParts = 8
	// touched is how much of each block is written, in bytes: it is what makes the kernel give one.
	touched = 4096
)

// Takable tells how many of the bytes of free blocks that are still to be taken may be taken at once, and given back: a small part of what is free, and as
// far as it can be no more than brings the pool to the next percentage at which somebody acts, by growing it or by refusing nodes. It may be
// a little more than what is asked for. 0: the pool is too full, or has too little metadata.
func (s *Session) Takable(space Space, left int64) int64 {
	st, block := s.Status, s.p.record.BlockSize
	if st.Mode != thinpool.ModeReadWrite || st.NeedsCheck {
		return 0
	}
	least := (max(minDiscard, block) + block - 1) / block
	most := min(int64(st.FreeData())/takenParts, maxTaken/block)
	if most < least {
		return 0
	}
	most = max(min(most, toNextMark(st, space), left/block), least)
	for ; most >= least; most /= 2 {
		if s.affords(2 * most * block) { // to take them, and to give them back
			return most * block
		}
	}
	return 0
}

// toNextMark is how many blocks can be taken before the part in use comes to a percentage at which somebody acts.
func toNextMark(st thinpool.PoolStatus, space Space) int64 {
	marks := append([]int{space.GrowAt, 100 - space.MinFree}, Thresholds...)
	next := st.TotalData
	for _, percent := range marks {
		at := (st.TotalData*uint64(percent) + 99) / 100
		if at > st.UsedData {
			next = min(next, at)
		}
	}
	return int64(next-min(st.UsedData, next)) - 1
}

// TakeFree has a thin device take so many bytes of free blocks. The device is new, empty, not active and will be deleted, which is what gives
// them back; its lock is held. With discard they are also discarded on the data device by us, for a pool that passes no discards
// down: as the device has them, they are nobody else's. ErrUnsupported is that the data device takes none.
func (s *Session) TakeFree(ctx context.Context, id metadata.ThinID, bytes int64, discard bool) error {
	active := false
	err := s.withDead(id, extent{0, uint64(bytes)}, func(f *os.File) error {
		active = true
		if err := s.touch(ctx, f, bytes); err != nil {
			return err
		}
		return pointTrimTaken.Hit()
	})
	if err == nil && !active {
		err = fmt.Errorf("thin device %d cannot be activated: %w", id, errs.ErrDamaged)
	}
	if err == nil && discard {
		err = s.discardTaken(ctx, id)
	}
	if err != nil {
		return fmt.Errorf("take free blocks: %w", err)
	}
	return nil
}

// touch writes to each block of a thin device. What the disk below refuses, a full host for one, was taken all the same.
func (s *Session) touch(ctx context.Context, f *os.File, bytes int64) error {
	some := make([]byte, touched)
	var err error
	for at := int64(0); at < bytes && err == nil; at += s.p.record.BlockSize {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, err = f.WriteAt(some, at)
	}
	if err = errors.Join(err, fsutil.Flush(f)); err != nil {
		s.p.log.Debug("take free blocks", "error", err)
	}
	return nil
}

// discardTaken discards on the data device what a thin device has that nothing writes to. Where that lies is read from a metadata snapshot: what is
// read from the live metadata may be another device's by the time that it is read.
func (s *Session) discardTaken(ctx context.Context, id metadata.ThinID) error {
	block := uint64(s.p.record.BlockSize)
	var runs []extent
	err := s.ReadMetadata(ctx, func(m *thinmeta.Metadata) error {
		for run, err := range m.Mappings(ctx, uint64(id)) {
			if err != nil {
				return err
			}
			runs = append(runs, extent{run.Data * block, run.Length * block})
		}
		return nil
	})
	if err != nil {
		return err
	}
	table, _, err := s.Thin.Table()
	if err != nil {
		return err
	}
	path, err := s.p.DeviceNode(table.Data)
	if err != nil {
		return err
	}
	f, err := fsutil.OpenDevice(path, true)
	if err != nil {
		return err
	}
	defer func() { _ = fsutil.BetweenStarts(f.Close) }()
	for _, step := range stepsOf(runs, discardAtOnce) {
		for _, e := range step {
			if err := fsutil.Discard(f, e.offset, e.length); err != nil {
				return err
			}
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
