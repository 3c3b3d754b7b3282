package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointCopyWritten = fault.New("pool.copy.written")
	pointCopyFlushed = fault.New("pool.copy.flushed")
)

// CopyRecords makes a copy of the records as they are now: a backup outside the pool, and one in the pool's label
// where the pool can take it. Store and pool have been compared. Where somebody else is at it, nothing is done.
//
// It costs a read transaction, one synced file and one flush of the label device, all in proportion to the
// number of records, and no transaction of the store.
func (s *Session) CopyRecords(ctx context.Context) error {
	ok, err := s.TryLockID(labelID)
	if !ok || err != nil {
		return err
	}
	defer s.UnlockID(labelID)
	var b bytes.Buffer
	err = s.Records.View(ctx, func(tx *metadata.Tx) error { return tx.WriteCopy(&b, time.Now()) })
	if err != nil {
		return fmt.Errorf("copy the records of pool %q: %w", s.p.files.name, err)
	}
	// What is wrong in the store must not push sound copies out.
	c, err := metadata.ReadCopy(bytes.NewReader(b.Bytes()))
	if err != nil {
		return fmt.Errorf("copy the records of pool %q: %w", s.p.files.name, err)
	}
	err = s.p.writeBackup(b.Bytes(), c)
	if s.Status.Mode == thinpool.ModeReadWrite && s.Status.Commits() {
		err = errors.Join(err, s.copyToLabel(b.Bytes()))
	}
	return err
}

// copyToLabel writes a copy into the label. Its id lock is held. What a crash leaves of the label's device is taken away
// by the next recovery, which the mark tells of it.
func (s *Session) copyToLabel(text []byte) error {
	if err := s.Mark(labelID); err != nil {
		return err
	}
	return s.withLabel(true, func(f *os.File) error {
		if err := writeSlot(f, text); err != nil {
			return err
		}
		if err := pointCopyWritten.Hit(); err != nil {
			return err
		}
		if err := fsutil.Flush(f); err != nil {
			return fmt.Errorf("write copy of the records: %w", err)
		}
		return pointCopyFlushed.Hit()
	})
}

// copyBeforeStop copies the records where they have changed since the last copy and belong to what runs. Those of a pool
// that does not run, or of another, would push good copies out.
func (s *Session) copyBeforeStop(ctx context.Context) error {
	err := s.look()
	if errors.Is(err, devmapper.ErrNotFound) || err == nil && s.Pair(ctx) != nil {
		return nil
	}
	if err != nil {
		return kernelError(err)
	}
	list, err := listBackups(s.p.files.backupDir(s.p.record.UUID))
	if err != nil {
		return err
	}
	version, err := s.Records.Version()
	if err != nil || len(list) > 0 && list[len(list)-1].Version == version {
		return err
	}
	return s.CopyRecords(ctx)
}
