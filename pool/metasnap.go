package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var pointMetaReserved = fault.New("pool.metadata.reserved")

// minFreeMetadata is how many blocks of 4 KiB must be free for a metadata snapshot: while it is held, what
// writers change is kept beside what they change it to, and a pool without metadata cannot even delete.
const minFreeMetadata = 64

// ReadMetadata runs fn on the pool's metadata as of one moment, which is the kernel's metadata snapshot: a pool has one at
// most, so others wait for fn, which should not take long. fn takes no locks but the store's. What an earlier reader left
// that died is released.
//
// A pool that cannot commit takes no messages, and changes no metadata either: there it is read as it
// lies on the device, space maps included. Where there is too little metadata for a snapshot, the error is ErrNoSpace.
func (s *Session) ReadMetadata(ctx context.Context, fn func(*thinmeta.Metadata) error) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("read the metadata of pool %q: %w", s.p.files.name, kernelError(err))
		}
	}()
	if err := s.holder.Lock(ctx, at(offsetMetaSnap), lockfile.Exclusive); err != nil {
		return err
	}
	defer s.unlock(offsetMetaSnap)
	st, err := s.Thin.Status()
	if err != nil {
		return err
	}
	if !st.Commits() {
		return s.p.openMetadata(0, fn)
	}
	if st.FreeMetadata() < minFreeMetadata {
		err := fmt.Errorf("only %d blocks of metadata are free: %w", st.FreeMetadata(), errs.ErrNoSpace)
		return errs.WithHint(err, RoomHint)
	}
	return s.Thin.WithMetadataSnap(func(root uint64) error {
		if err := pointMetaReserved.Hit(); err != nil {
			return err
		}
		return s.p.openMetadata(root, fn)
	})
}

// SettleMetadata releases the metadata snapshot of a reader who died. Where there was none when the session began, it
// asks nothing; a living reader's stays.
func (s *Session) SettleMetadata() error {
	if s.Status.HeldRoot == 0 || !s.Status.Commits() {
		return nil
	}
	ok, err := s.holder.TryLock(at(offsetMetaSnap), lockfile.Exclusive)
	if !ok || err != nil {
		return err
	}
	defer s.unlock(offsetMetaSnap)
	st, err := s.Thin.Status()
	if err == nil && st.HeldRoot != 0 {
		s.p.log.Info("released a metadata snapshot that a dead process had reserved", "pool", s.p.files.name)
		err = s.Thin.ReleaseMetadataSnap()
	}
	return kernelError(err)
}

// releaseBeforeStop releases the metadata snapshot of a reader who died: it would outlive the pool's stop, and keep what it refers to.
// The start/stop lock is held exclusively, so that nobody reads. Whatever is wrong with the pool, it can be stopped.
func (s *Session) releaseBeforeStop() {
	err := s.look()
	if err == nil {
		err = s.SettleMetadata()
	}
	if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		s.p.log.Debug("release a metadata snapshot before the pool stops", "pool", s.p.files.name, "error", err)
	}
}
