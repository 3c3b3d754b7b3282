package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var pointReapSettle = fault.New("layer.reap.deleted")

const (
	// reapDiscards is how many bytes are discarded in one go: in between, whoever wants to stop the pool gets his turn.
	reapDiscards = 256 << 20
	// reapParts is of how many equal times a go consists: four steps and three pauses.
	reapParts = 7
	// reapAtOnce is how many thin devices are looked at in one go.
	reapAtOnce = 64
)

// Reaping is how far a Reap has come.
type Reaping struct {
	Left        int   // thin devices that are to be deleted
	Done, Total int64 // bytes of the one at work that only it has, and how many of them were given back
}

// Reaped is what a Reap did.
type Reaped struct {
	Deleted int // thin devices
	InUse   int // thin devices that somebody still has open: they stay for later
}

// Reap finishes removals: it gives back to the backing what only the removed nodes had, with a pause after each step that is as long as
// the step, and deletes their thin devices. Any number of processes may do so at once, and any of them may die at any time: those who
// come later go on. What other processes are at work on is left to them. A pool that does not run is not started. progress may be nil.
//
// Where ctx ends, the error is its cause, and the rest is left to the next one.
func (s *Store) Reap(ctx context.Context, progress func(Reaping)) (Reaped, error) {
	var r Reaped
	for {
		began := time.Now()
		more, err := s.reapSome(ctx, &r, progress)
		if err == nil && more {
			err = rest(ctx, time.Since(began)/reapParts)
		}
		if err != nil || !more {
			return r, opError("reap", "removed nodes", err)
		}
	}
}

// reapSome is one go of Reap; it tells whether another one would find work.
func (s *Store) reapSome(ctx context.Context, r *Reaped, progress func(Reaping)) (more bool, err error) {
	o, err := s.beginReap(ctx)
	if o == nil || err != nil {
		return false, err
	}
	defer o.Exit()
	inFlight, tombs, err := o.candidates(ctx)
	if err != nil {
		return false, err
	}
	left := append(tombs, inFlight...)
	s.forgetOpen(left)
	ready := o.closed(left)
	some := ready[:min(len(ready), reapAtOnce)]
	c := cleaning{budget: reapDiscards}
	if progress != nil {
		c.progress = func(_ metadata.ThinID, done, total int64) {
			progress(Reaping{Left: len(ready) - c.gone, Done: done, Total: total})
		}
	}
	err = o.cleanAll(ctx, some, &c)
	s.rememberOpen(c.open)
	r.Deleted += c.gone
	r.InUse = len(left) - len(ready) + len(c.open)
	if err == nil {
		err = pointReapSettle.Hit()
	}
	if err == nil && c.gone > 0 { // else whoever opens the pool next looks at them again
		err = o.update(ctx, func(*metadata.Tx) error { return nil })
	}
	worked := c.gone > 0 || c.more > 0
	return worked && (c.more > 0 || len(some) < len(ready)), err
}

// beginReap is beginDelete where the pool runs, and nil where it does not.
func (s *Store) beginReap(ctx context.Context) (*op, error) {
	session, err := s.pool.EnterRunning(ctx)
	if err != nil || session == nil {
		return nil, err
	}
	o := &op{Session: session, s: s}
	if err := errors.Join(o.MakeDeletable(ctx), o.Writable()); err != nil {
		o.Exit()
		return nil, err
	}
	return o, nil
}

// rest leaves the pool to others.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// tally puts the progress of several goes together.
type tally struct {
	tell         func(done, total int64)
	before, last int64 // given back by the goes before, and by the last one
}

func (t *tally) show(done, total int64) {
	t.last = done
	t.tell(t.before+done, t.before+total)
}

func (t *tally) next() { t.before, t.last = t.before+t.last, 0 }

// finish goes on with the removal of one node, and tells whether anything of it is left.
func (s *Store) finish(ctx context.Context, id metadata.ThinID, t *tally) (left bool, err error) {
	for {
		t.next()
		began := time.Now()
		c := cleaning{budget: reapDiscards}
		if t.tell != nil {
			c.progress = func(_ metadata.ThinID, done, total int64) { t.show(done, total) }
		}
		if err := s.finishSome(ctx, id, &c); err != nil {
			return true, err
		}
		if c.more == 0 {
			return len(c.open) > 0, nil
		}
		if err := rest(ctx, time.Since(began)/reapParts); err != nil {
			return true, err
		}
	}
}

// finishSome is one go of finish. Somebody else who is at work on the same node is waited for.
func (s *Store) finishSome(ctx context.Context, id metadata.ThinID, c *cleaning) error {
	o, err := s.beginDelete(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	if err := o.LockIDs(ctx, id); err != nil {
		return err
	}
	return o.cleanLocked(ctx, []metadata.ThinID{id}, c)
}

// WaitTombstones waits until there is something for Reap to do, and returns the cause where ctx ends first. In a pool that does not run there is nothing to do, and what somebody still had
// open when this process reaped last is nothing to do until he has closed it.
func (s *Store) WaitTombstones(ctx context.Context) error {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := s.pool.Changes(watch)
	if err != nil {
		return opError("watch", "removed nodes", err)
	}
	for {
		ok, err := s.anythingToReap(ctx)
		if ok || err != nil {
			return opError("watch", "removed nodes", err)
		}
		if _, ok := <-changes; !ok {
			if err := context.Cause(ctx); err != nil {
				return err
			}
			return opError("watch", "removed nodes", errors.New("the kernel tells no more of what happens"))
		}
	}
}

// noteTombstones remembers that the store had none at a version: as long as it is at that one, nobody need look.
func (s *Store) noteTombstones(version uint64, number int) {
	if number == 0 {
		s.quiet.Store(version)
	}
}

// isQuiet tells whether there is certainly no tombstone. It costs little, as it is asked whenever anybody changes a record or a device.
func (s *Store) isQuiet(ctx context.Context) (bool, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return false, err
	}
	defer o.Exit()
	version, err := o.Records.Version()
	return version != 0 && version == s.quiet.Load(), err
}

func (s *Store) anythingToReap(ctx context.Context) (bool, error) {
	if quiet, err := s.isQuiet(ctx); quiet || err != nil {
		return false, err
	}
	session, err := s.pool.EnterRunning(ctx)
	if err != nil || session == nil {
		return false, err
	}
	o := &op{Session: session, s: s}
	defer o.Exit()
	var left []metadata.ThinID
	err = o.view(ctx, func(tx *metadata.Tx) (err error) {
		all, err := tx.Tombstones()
		if err == nil {
			s.noteTombstones(tx.Version(), len(all))
			left, err = s.tombstones(tx)
		}
		return err
	})
	if err != nil {
		return false, fmt.Errorf("look for removed nodes: %w", err)
	}
	return len(o.closed(left)) > 0, nil
}

// closed leaves out what this process found open and that still is.
func (o *op) closed(ids []metadata.ThinID) []metadata.ThinID {
	closed := make([]metadata.ThinID, 0, len(ids))
	for _, id := range ids {
		if o.s.wasOpen(id) {
			info, err := o.dm().Info(o.ref(id))
			if err == nil && info.OpenCount > 0 {
				continue
			}
			if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
				continue
			}
		}
		closed = append(closed, id)
	}
	return closed
}

func (s *Store) wasOpen(id metadata.ThinID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inUse[id]
}

func (s *Store) rememberOpen(ids []metadata.ThinID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inUse == nil {
		s.inUse = map[metadata.ThinID]bool{}
	}
	for _, id := range ids {
		s.inUse[id] = true
	}
}

// forgetOpen forgets what is not to be deleted any more.
func (s *Store) forgetOpen(left []metadata.ThinID) {
	still := map[metadata.ThinID]bool{}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, id := range left {
		if s.inUse[id] {
			still[id] = true
		}
	}
	s.inUse = still
}
