package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointCreateDir      = fault.New("pool.create.directory")
	pointCreateRecord   = fault.New("pool.create.recorded")
	pointCreateActive   = fault.New("pool.create.activated")
	pointCreateLabelled = fault.New("pool.create.labelled")
)

// Create makes a pool and starts it. What it is about to make is recorded first, so that a Create
// that is killed is undone by the next command. Errors: ErrInvalid, ErrExists, ErrNoSpace,
// ErrUnsupported.
func Create(ctx context.Context, dirs Dirs, spec Spec) error {
	spec, err := spec.complete()
	if err != nil {
		return err
	}
	if err := makeDirs(dirs.Root); err != nil {
		return err
	}
	p, err := open(dirs, spec.Name, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := p.exclusive(ctx, "create")
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.clearPlace(ctx); err != nil {
		return fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	p.wipe = spec.Force
	if p.record, err = spec.record(ctx); err != nil {
		return fmt.Errorf("create pool %q: %w", spec.Name, err)
	}
	if spec.Backing == BackingDevice { // up to the end of an undo
		unlock, err := p.files.lockDisks(ctx)
		if err != nil {
			return fmt.Errorf("create pool %q: %w", spec.Name, err)
		}
		defer unlock()
		p.disksLocked = true
	}
	if err := s.create(ctx); err != nil {
		if !s.recorded { // what is there may be another's, who uses another run directory
			_ = os.Remove(p.files.blobs())
			_ = os.Remove(p.files.dir())
			return fmt.Errorf("create pool %q: %w", spec.Name, kernelError(err))
		}
		undo, cancel := UndoContext(ctx)
		defer cancel()
		return errors.Join(fmt.Errorf("create pool %q: %w", spec.Name, kernelError(err)), s.vanish(undo))
	}
	return nil
}

// undoTimeout bounds an undo, which must run although its operation was cancelled.
const undoTimeout = time.Minute

// UndoContext returns the context of an undo.
func UndoContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
}

// exclusive returns a session that holds the start/stop lock exclusively.
func (p *Pool) exclusive(ctx context.Context, op string) (*Session, error) {
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	bounded, cancel := context.WithTimeout(ctx, exclusiveWait)
	defer cancel()
	err = s.holder.Lock(bounded, at(offsetStartStop), lockfile.Exclusive)
	if err == nil {
		return s, nil
	}
	s.Exit()
	if bounded.Err() != nil && ctx.Err() == nil {
		err := fmt.Errorf("%s pool %q: an operation on it is running, such as the loading of an image: %w", op, p.files.name, errs.ErrBusy)
		return nil, errs.WithHint(err, "wait for it to end, or end it")
	}
	return nil, fmt.Errorf("%s pool %q: waiting for operations that run: %w", op, p.files.name, err)
}

// exclusiveWait is for how long stop, destroy and create wait for operations that run: the short ones end
// by then, and for a long one nobody wants to wait without a word.
const exclusiveWait = 10 * time.Second

// clearPlace takes away what a dead Create or Destroy left of the name; a living pool is ErrExists.
func (s *Session) clearPlace(ctx context.Context) error {
	err := s.readRecord(ctx)
	switch {
	case err == nil && s.p.record.State == metadata.PoolReady:
		return errs.ErrExists
	case err == nil:
		return s.removeAll(ctx)
	case errors.Is(err, errs.ErrNotFound):
		return s.p.clearUnrecorded()
	default:
		return err
	}
}

func (s *Session) create(ctx context.Context) error {
	p := s.p
	if err := makeDirs(p.files.poolsDir(), p.files.dir()); err != nil {
		return err
	}
	if err := pointCreateDir.Hit(); err != nil {
		return err
	}
	if err := makeDirs(p.files.blobs()); err != nil {
		return err
	}
	if err := metadata.Create(p.files.store(), p.record); err != nil { // syncs the folder
		return err
	}
	s.recorded = true
	if err := fsutil.SyncDir(p.files.poolsDir()); err != nil {
		return err
	}
	if err := pointCreateRecord.Hit(); err != nil {
		return err
	}
	b, err := p.backing()
	if err != nil {
		return err
	}
	if err := b.create(ctx); err != nil {
		return err
	}
	if err := s.activate(ctx, b, p.record); err != nil {
		return err
	}
	if err := pointCreateActive.Hit(); err != nil {
		return err
	}
	if err := s.Thin.SetTransactionID(0, p.record.TransactionID); err != nil {
		return err
	}
	if err := s.makeLabel(); err != nil {
		return err
	}
	if err := pointCreateLabelled.Hit(); err != nil {
		return err
	}
	err = s.Records.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		r.State, r.Backing = metadata.PoolReady, p.record.Backing // of which the backing has learned more
		return tx.PutPool(r)
	})
	if err == nil {
		_ = p.files.forgetDisk() // else the next start does it
	}
	return err
}

// load reads the record for Open. A pool that died while it was made or destroyed is cleaned up.
func (p *Pool) load(ctx context.Context) error {
	s, err := p.session(ctx)
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.readRecord(ctx); err != nil {
		return p.notFound(err)
	}
	if p.record.State == metadata.PoolReady {
		return nil
	}
	// Its owner holds the lock for as long as he lives.
	ok, err := s.holder.TryLock(at(offsetStartStop), lockfile.Exclusive)
	if err != nil {
		return fmt.Errorf("pool %q: %w", p.files.name, err)
	}
	if !ok {
		return fmt.Errorf("pool %q is being made or destroyed: %w", p.files.name, errs.ErrBusy)
	}
	if err := s.readRecord(ctx); err != nil || p.record.State == metadata.PoolReady {
		return p.notFound(err)
	}
	p.log.Info("pool died while it was made or destroyed: removing the rest", "pool", p.files.name, "state", p.record.State)
	if err := s.vanish(ctx); err != nil {
		return fmt.Errorf("remove what is left of pool %q: %w", p.files.name, err)
	}
	return p.notFound(errs.ErrNotFound)
}

func (p *Pool) notFound(err error) error {
	if !errors.Is(err, errs.ErrNotFound) {
		return err
	}
	hint := "dmlayer pool create " + p.files.name + " makes it"
	if _, err := os.Stat(p.files.metadata()); err == nil {
		hint = "its record store is lost: dmlayer pool import " + p.files.dir() + " brings it back"
	}
	return errs.WithHint(fmt.Errorf("pool %q: %w", p.files.name, errs.ErrNotFound), hint)
}

func (s *Session) readRecord(ctx context.Context) error {
	err := s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		s.p.record, err = tx.Pool()
		return err
	})
	if err == nil && s.p.record.Name != s.p.files.name {
		// What it describes has other locks, and must not be touched under these.
		return s.p.misnamed()
	}
	return err
}
