package pool

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var pointPairRolled = fault.New("pool.pair.rolled")

// newTransactionID returns a random tag above 24 bits of count, so that a store and a pool that do
// not belong together do not look as if they did.
func newTransactionID() (uint64, error) {
	var b [8]byte
	if _, err := rand.Read(b[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b[:]) << 24, nil
}

// Pair compares the record store with the kernel's pool and finishes a bump that a crash cut short.
// A store and a pool that do not belong together are ErrDamaged, and nothing is touched.
func (s *Session) Pair(ctx context.Context) error {
	return s.withPoolLock(ctx, func() error {
		_, err := s.pairLocked(ctx)
		if errors.Is(err, errLater) {
			return nil
		}
		return err
	})
}

// errLater says that store and pool belong together and that the pool cannot take the step that it is
// behind: reading works, and the next reservation takes the step.
var errLater = errors.New("the pool is one transaction behind and takes no messages")

// pairLocked is Pair with the pool lock held. It returns the record that it compared.
func (s *Session) pairLocked(ctx context.Context) (metadata.Pool, error) {
	var record metadata.Pool
	err := s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		record, err = tx.Pool()
		return err
	})
	if err != nil {
		return record, err
	}
	st, err := s.Thin.Status()
	if err != nil {
		return record, kernelError(err)
	}
	if record.UUID != s.p.record.UUID {
		return record, s.p.mispaired("the record store is another pool's, %s instead of %s", record.UUID, s.p.record.UUID)
	}
	switch behind := previous(record); {
	case st.Mode == thinpool.ModeFail || st.Mode == thinpool.ModeError:
		return record, s.p.unwritable(st) // it does not say its transaction id any more
	case st.TransactionID == record.TransactionID:
	case st.TransactionID == behind && record.Pending && !st.Commits():
		return record, fmt.Errorf("%w: %w", errLater, s.p.unwritable(st))
	case st.TransactionID == behind && record.Pending:
		if err := s.setTransactionID(st.TransactionID, record.TransactionID); err != nil {
			return record, err
		}
		if err := pointPairRolled.Hit(); err != nil {
			return record, err
		}
	default:
		return record, s.p.mispaired("the record store says transaction %#x, the pool %#x", record.TransactionID, st.TransactionID)
	}
	if !record.Pending {
		return record, nil
	}
	record.Pending, record.ImportedFrom = false, 0
	return record, s.clearPending(ctx, record.TransactionID)
}

// bump raises the transaction id on both sides: the store first, with pending, then the pool by
// compare and swap, then pending goes in a transaction of its own. The pool lock is held and both
// sides have just been compared.
func (s *Session) bump(ctx context.Context, change func(*metadata.Pool)) error {
	var id uint64
	err := s.Records.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		r.TransactionID++
		r.Pending, r.ImportedFrom = true, 0
		id = r.TransactionID
		change(&r)
		return tx.PutPool(r)
	})
	if err != nil {
		return err
	}
	if err := pointReserveStored.Hit(); err != nil {
		return err
	}
	if err := s.setTransactionID(id-1, id); err != nil {
		return err
	}
	if err := pointReserveBumped.Hit(); err != nil {
		return err
	}
	return s.clearPending(ctx, id)
}

// setTransactionID is the compare and swap, and the look at the status that shows that it was
// committed.
func (s *Session) setTransactionID(old, new uint64) error {
	if err := s.Thin.SetTransactionID(old, new); err != nil {
		return fmt.Errorf("pool %q: %w", s.p.files.name, kernelError(err))
	}
	st, err := s.Thin.Status()
	if err != nil {
		return kernelError(err)
	}
	if st.TransactionID != new || !st.Commits() {
		return s.p.unwritable(st)
	}
	return nil
}

func (s *Session) clearPending(ctx context.Context, id uint64) error {
	return s.Records.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil || r.TransactionID != id {
			return err
		}
		r.Pending, r.ImportedFrom = false, 0
		return tx.PutPool(r)
	})
}

// previous is what the pool says while it has not followed the store yet: one less, or after an import, which takes a
// new tag, what it said then.
func previous(r metadata.Pool) uint64 {
	if r.ImportedFrom != 0 {
		return r.ImportedFrom
	}
	return r.TransactionID - 1
}

// ErrMispaired says that a pool and the records next to it are not of one another. It comes with ErrDamaged: the records may
// be whole, and say nothing about the pool.
var ErrMispaired = errors.New("the record store and the pool do not belong together")

// misnamed says what to do with a folder that has another name than its records: it was copied or renamed.
func (p *Pool) misnamed() error {
	dir, name := p.files.dir(), p.record.Name
	advice := fmt.Sprintf("the folder was renamed: rename it back to %q, or take it over under its new name with dmlayer pool import %s. Nothing was changed", name, dir)
	if _, err := os.Lstat(filepath.Join(filepath.Dir(dir), name)); err == nil {
		advice = fmt.Sprintf("the folder is a copy of that of pool %q, of which only one can be here: take one of the two away. Nothing was changed", name)
	}
	return errs.WithHint(p.mispaired("the record store is that of pool %q", name), advice)
}

func (p *Pool) mispaired(format string, args ...any) error {
	err := fmt.Errorf("pool %q: %w: %s: %w", p.files.name, ErrMispaired, fmt.Sprintf(format, args...), errs.ErrDamaged)
	return errs.WithHint(err, "one of the two was restored from a copy or belongs to somebody else; put its counterpart back, or see what dmlayer pool import "+p.files.dir()+" says. Nothing was changed")
}
