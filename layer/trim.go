package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/pause"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/thinpool"
)

var pointTrimDeleted = fault.New("layer.trim.deleted")

// TrimMounted trims all nodes that are mounted for writing, one after the other, as Trim does each, and tells of each how many bytes its file system passed
// down. What fails for one keeps the others from nothing: the errors come together at the end.
func (s *Store) TrimMounted(ctx context.Context, tell func(name string, trimmed uint64)) error {
	nodes, err := s.List(ctx)
	if err != nil {
		return err
	}
	var all error
	for _, n := range nodes {
		if n.State != StateMounted || n.Kind == KindLayer {
			continue
		}
		trimmed, err := s.Trim(ctx, n.Name)
		switch {
		case ctx.Err() != nil:
			return errors.Join(all, err)
		case errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrInvalid): // unmounted meanwhile, or mounted read-only
		case err != nil:
			all = errors.Join(all, err)
		default:
			tell(n.Name, trimmed)
		}
	}
	return all
}

// TrimFreeOptions say how free blocks are given back.
type TrimFreeOptions struct {
	// Discard has them discarded also where the pool passes no discards down.
	Discard bool
	// Enough ends it when no more bytes than that are left which the host keeps for nobody; where that is not known, it means nothing.
	Enough int64
	// Most is how many bytes of free blocks are taken at most, 0 for all that there are.
	Most int64
	// Progress, unless nil, is told how far it has come, in bytes.
	Progress func(done, total int64)
}

// FreeTrim is what a TrimFree did.
type FreeTrim struct {
	// Swept are the bytes of free blocks that were taken and given back.
	Swept int64
	// Before and After are the bytes that the host keeps for free blocks, of a pool whose data is a file; else nil.
	Before, After *int64
	// Kept says that nothing was done as the pool passes no discards down and was not told to discard.
	Kept bool
	// Full says that it ended early as too little was free, of data or of metadata.
	Full bool
}

// TrimFree gives the blocks that no node has back to what the pool lies on, while the pool is in use. Blocks that are free are taken by a thin device
// of its own, at most an eighth of them and 256 MiB at once, discarded and freed again, with a pause after each part that is half as long
// as the part. Whoever dies meanwhile leaves a thin device that the next Open deletes; where ctx ends, the error is its cause,
// nothing is left, and what was given back stays so. It ends when it has taken as much as was free at the beginning, or when the host is known to
// keep nothing more. A pool that does not run is left alone. Errors: ErrUnsupported where Discard is asked of a device that has none.
func (s *Store) TrimFree(ctx context.Context, o TrimFreeOptions) (FreeTrim, error) {
	var w sweep
	w.options = o
	for {
		began := time.Now()
		more, err := s.sweepSome(ctx, &w)
		if err == nil && more {
			err = pause.For(ctx, time.Since(began)/2)
		}
		if err != nil || !more {
			return w.result, opError("trim", s.pool.Name(), err)
		}
	}
}

// sweep is a TrimFree that has come somewhere.
type sweep struct {
	options TrimFreeOptions
	result  FreeTrim
	begun   bool
	total   int64 // bytes that were free at the beginning
}

// sweepSome takes one part, and tells whether there is another one.
func (s *Store) sweepSome(ctx context.Context, w *sweep) (more bool, err error) {
	session, err := s.pool.EnterRunning(ctx)
	if err != nil || session == nil {
		return false, err
	}
	o := &op{Session: session, s: s}
	defer o.Exit()
	if err := o.Writable(); err != nil {
		return false, err
	}
	if o.Status.Discard != thinpool.DiscardPassdown && !w.options.Discard {
		w.result.Kept = true
		return false, nil
	}
	if more, err := o.look(ctx, w); !more || err != nil {
		return false, err
	}
	part, err := o.takable(ctx, w.total-w.result.Swept)
	if part == 0 || err != nil {
		w.result.Full = err == nil
		return false, err
	}
	if err := o.sweepPart(ctx, part, w.options.Discard && o.Status.Discard != thinpool.DiscardPassdown); err != nil {
		return false, err
	}
	w.result.Swept += part
	w.tell()
	return true, nil
}

// look looks how far a sweep has come, and tells whether there is anything left.
func (o *op) look(ctx context.Context, w *sweep) (more bool, err error) {
	stale, known, err := o.Stale(ctx)
	if ctx.Err() != nil {
		return false, context.Cause(ctx)
	}
	if err != nil { // others may write more metadata than can be read meanwhile: then all of it is swept
		o.s.log.Debug("look what the host keeps for free blocks", "error", err)
	}
	if !w.begun {
		w.begun, w.total = true, int64(o.Status.FreeData())*o.s.pool.Record().BlockSize
		if w.options.Most > 0 {
			w.total = min(w.total, w.options.Most)
		}
		if known {
			before := stale
			w.result.Before = &before
		}
		w.tell()
	}
	if known {
		w.result.After = &stale
		if stale <= w.options.Enough {
			return false, nil
		}
	}
	return w.result.Swept < w.total, nil
}

func (w *sweep) tell() {
	if w.options.Progress != nil {
		w.options.Progress(min(w.result.Swept, w.total), w.total)
	}
}

func (o *op) takable(ctx context.Context, most int64) (part int64, err error) {
	err = o.view(ctx, func(tx *metadata.Tx) error {
		space, err := pool.Settings(tx)
		part = o.Takable(space, most)
		return err
	})
	return part, err
}

// sweepPart takes free blocks, and gives them back. Its thin device has an id in flight: nothing names it, so that whoever opens the pool after a crash
// deletes it.
func (o *op) sweepPart(ctx context.Context, part int64, discard bool) error {
	id, err := o.newThin(ctx, func(id metadata.ThinID) error { return o.Thin.CreateThin(thinpool.ID(id)) })
	if err != nil {
		return err
	}
	if err = o.TakeFree(ctx, id, part, discard); err == nil {
		_, err = o.deleteWith(ctx, id, pool.DiscardOptions{})
	}
	if err == nil {
		err = pointTrimDeleted.Hit()
	}
	if err != nil {
		return undoing(ctx, fmt.Errorf("free blocks: %w", err), o.undo(id))
	}
	o.UnlockID(id)
	return o.update(ctx, func(*metadata.Tx) error { return nil }) // the low mark follows
}

// Stale tells how many bytes the host keeps for blocks that no node has, and how many are in use, of a pool that runs, whose data is a file
// and which passes discards down; of others it is 0 and 0.
func (s *Store) Stale(ctx context.Context) (stale, used int64, err error) {
	session, err := s.pool.EnterRunning(ctx)
	if err != nil || session == nil {
		return 0, 0, opError("look at", s.pool.Name(), err)
	}
	defer session.Exit()
	if session.Status.Discard != thinpool.DiscardPassdown || !session.Status.Commits() {
		return 0, 0, nil
	}
	stale, known, err := session.Stale(ctx)
	if err != nil || !known {
		return 0, 0, opError("look at", s.pool.Name(), err)
	}
	return stale, int64(session.Status.UsedData) * s.pool.Record().BlockSize, nil
}
