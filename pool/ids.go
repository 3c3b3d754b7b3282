package pool

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"strings"
	"sync"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointReserveStored = fault.New("pool.reserve.stored")
	pointReserveBumped = fault.New("pool.reserve.bumped")
	pointAllocated     = fault.New("pool.allocate.cursor")
)

// cursor is the volatile place in the window of thin ids: the next id to hand out, and the high mark
// as it was when the cursor was written. Both change only under the pool lock.
type cursor struct {
	next, high metadata.ThinID
}

var bootID = sync.OnceValues(func() ([]byte, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return []byte(strings.TrimSpace(string(b))), err
})

// The cursor lies in the lock file: boot id (36 bytes), the pool's UUID (32), next, high (u32, little
// endian) and an IEEE CRC-32 of all that.
const (
	cursorNext = 36 + 32
	cursorHigh = cursorNext + 4
	cursorSum  = cursorHigh + 4
	cursorSize = cursorSum + 4
)

// readCursor returns false where the cursor is lost: after a reboot, or where the run directory was
// cleaned. Allocation then goes on at the high mark.
func (s *Session) readCursor() (cursor, bool, error) {
	boot, err := bootID()
	if err != nil {
		return cursor{}, false, fmt.Errorf("read boot id: %w", err)
	}
	var b, before [cursorSize]byte
	for again := false; ; again = true {
		if _, err := s.holder.ReadAt(b[:], 0); err != nil && !errors.Is(err, io.EOF) {
			return cursor{}, false, fmt.Errorf("read cursor of pool %q: %w", s.p.files.name, err)
		}
		if string(b[:cursorNext]) == string(boot)+s.p.record.UUID &&
			binary.LittleEndian.Uint32(b[cursorSum:]) == crc32.ChecksumIEEE(b[:cursorSum]) {
			break
		}
		// It is lost, unless somebody is writing it: who only looks has no lock.
		if again && b == before {
			return cursor{}, false, nil
		}
		before = b
	}
	return cursor{
		next: metadata.ThinID(binary.LittleEndian.Uint32(b[cursorNext:])),
		high: metadata.ThinID(binary.LittleEndian.Uint32(b[cursorHigh:])),
	}, true, nil
}

func (s *Session) writeCursor(c cursor) error {
	boot, err := bootID()
	if err != nil {
		return fmt.Errorf("read boot id: %w", err)
	}
	b := append(make([]byte, 0, cursorSize), boot...)
	b = append(b, s.p.record.UUID...)
	b = binary.LittleEndian.AppendUint32(b, uint32(c.next))
	b = binary.LittleEndian.AppendUint32(b, uint32(c.high))
	b = binary.LittleEndian.AppendUint32(b, crc32.ChecksumIEEE(b))
	if _, err := s.holder.WriteAt(b, 0); err != nil {
		return fmt.Errorf("write cursor of pool %q: %w", s.p.files.name, err)
	}
	return nil
}

// AllocateID hands out a thin id that nothing names and takes its lock. After EEXIST from the kernel
// the caller unlocks it and takes the next.
func (s *Session) AllocateID(ctx context.Context) (id metadata.ThinID, err error) {
	err = s.withPoolLock(ctx, func() error {
		c, known, err := s.readCursor()
		if err != nil {
			return err
		}
		for {
			if !known || c.next >= c.high {
				if c, err = s.reserve(ctx); err != nil {
					return err
				}
				known = true
			}
			id = c.next
			c.next++
			ok, err := s.TryLockID(id)
			if err != nil {
				return err
			}
			if ok {
				if err := s.writeCursor(c); err != nil {
					return err
				}
				return pointAllocated.Hit()
			}
		}
	})
	if err != nil {
		return 0, fmt.Errorf("allocate thin id: %w", err)
	}
	return id, nil
}

// InFlight returns the bounds of the thin ids that may have been handed out and not been recorded.
func (s *Session) InFlight(record metadata.Pool) (low, cursor metadata.ThinID, err error) {
	c, known, err := s.readCursor()
	if err != nil {
		return 0, 0, err
	}
	if !known || c.next > record.HighID {
		return record.LowID, record.HighID, nil
	}
	return record.LowID, c.next, nil
}

// WhileKnown runs fn, which looks at what is in flight. Where the cursor is lost, as after a reboot and in a new pool, all ids between the marks count as
// handed out; so that those of a window that somebody is just reserving do not, which he has recorded and has no cursor for yet, the
// pool lock is held meanwhile. Whoever took them for dead would see them gone before they are made, and let the low mark pass them.
func (s *Session) WhileKnown(ctx context.Context, fn func() error) error {
	_, known, err := s.readCursor()
	if err != nil {
		return err
	}
	if known {
		return fn()
	}
	return s.withPoolLock(ctx, fn)
}

// reserve moves the high mark up by a window and bumps the transaction id with it. The pool lock is
// held. A reservation pairs first: one that was killed may have left the pool behind.
func (s *Session) reserve(ctx context.Context) (cursor, error) {
	record, err := s.pairLocked(ctx)
	if err != nil {
		return cursor{}, err
	}
	taken, err := s.p.snapshotsTaken(record)
	if err != nil {
		return cursor{}, err
	}
	if l := lifeOf(record, taken); l.spent() {
		return cursor{}, s.p.spent(l)
	}
	c := cursor{next: record.HighID, high: record.HighID + windowIDs}
	return c, s.bump(ctx, func(r *metadata.Pool) {
		r.HighID = c.high
		r.SnapshotsTaken = max(r.SnapshotsTaken, taken)
	})
}
