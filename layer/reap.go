package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/pause"
	"github.com/dmlayer/dmlayer/metadata"
)

var pointReapSettle = fault.New("layer.reap.deleted")

const (
	// reapDiscards is how many bytes are discarded in one go: in between, whoever wants to stop the pool gets his turn.
	reapDiscards = 256 << 20
	// reapParts is of how many equal times a go consists: four steps and three pauses.
	reapParts = 7
	// reapAtOnce is how many thin devices are worked on in one go.
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
	Failed  int // thin devices that could not be deleted, as the error says or because they are active without dmlayer, and kept no other from it
}

// Reap finishes removals: it gives back to the backing what only the removed nodes had, with a pause after each step that is as long as
// the step, and deletes their thin devices. Any number of processes may do so at once, and any of them may die at any time: those who
// come later go on. What other processes are at work on is left to them. A pool that does not run is not started. progress may be nil.
//
// Where ctx ends, the error is its cause, and the rest is left to the next one.
func (s *Store) Reap(ctx context.Context, progress func(Reaping)) (Reaped, error) {
	var r Reaped
	f := failures{ids: map[metadata.ThinID]bool{}}
	defer func() { s.rememberFailing(f.ids) }()
	for {
		began := time.Now()
		more, err := s.reapSome(ctx, &r, &f, progress)
		if err == nil && more {
			err = pause.For(ctx, time.Since(began)/reapParts)
		}
		if err != nil || !more {
			r.Failed = len(f.ids)
			return r, opError("reap", "removed nodes", errors.Join(err, f.first))
		}
	}
}

// failures are what a Reap could not delete.
type failures struct {
	ids   map[metadata.ThinID]bool
	first error // of one go: there may be thousands
}

// take leaves what failed to the next Reap, so that it does not keep others from their turn. What else has failed is returned.
func (f *failures) take(ctx context.Context, failed []metadata.ThinID, err error) error {
	if len(failed) == 0 || ctx.Err() != nil {
		return err
	}
	for _, id := range failed {
		f.ids[id] = true
	}
	if f.first == nil {
		f.first = err
	}
	return nil
}

// reapSome is one go of Reap; it tells whether another one would find work.
func (s *Store) reapSome(ctx context.Context, r *Reaped, f *failures, progress func(Reaping)) (more bool, err error) {
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
	closed := o.closed(left)
	open := len(left) - len(closed)
	ready := without(closed, f.ids)
	c := cleaning{budget: reapDiscards}
	if progress != nil {
		c.progress = func(_ metadata.ThinID, done, total int64) {
			progress(Reaping{Left: len(ready) - c.gone, Done: done, Total: total})
		}
	}
	err = o.cleanAll(ctx, ready, reapAtOnce, &c)
	err = f.take(ctx, c.failed, err)
	s.rememberOpen(c.open)
	r.Deleted += c.gone
	r.InUse = open + len(c.open)
	if err == nil {
		err = pointReapSettle.Hit()
	}
	if err == nil && c.gone > 0 { // else whoever opens the pool next looks at them again
		err = o.update(ctx, func(*metadata.Tx) error { return nil })
	}
	worked := c.gone > 0 || c.more > 0 || len(c.failed) > 0
	return worked && (c.more > 0 || c.untried > 0), err
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
			return len(c.open)+len(c.failed) > 0, nil
		}
		if err := pause.For(ctx, time.Since(began)/reapParts); err != nil {
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
// open when this process reaped last is nothing to do until he has closed it. What somebody is at work on is nothing to do until he has ended, and what the last Reap failed to delete is to be
// tried again by whoever thinks it time.
func (s *Store) WaitTombstones(ctx context.Context) error {
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	changes, err := s.pool.Changes(watch)
	if err != nil {
		return opError("watch", "removed nodes", err)
	}
	for {
		ok, busy, err := s.anythingToReap(ctx)
		if ok || err != nil {
			return opError("watch", "removed nodes", err)
		}
		if ok, err = s.waitChange(watch, changes, busy); err == nil && !ok {
			err = errors.New("the kernel tells no more of what happens")
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		if err != nil {
			return opError("watch", "removed nodes", err)
		}
	}
}

// waitChange waits until something has changed, or whoever is at work on a thin device, if there is one, has ended. Then there need be no change: he may have died. It is false
// where nothing will be told any more.
func (s *Store) waitChange(ctx context.Context, changes <-chan struct{}, busy *Work) (bool, error) {
	if busy == nil {
		_, ok := <-changes
		return ok, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		err = s.WaitFor(ctx, *busy)
	}()
	select {
	case _, ok := <-changes:
		cancel()
		<-ended
		return ok, nil
	case <-ended:
		return true, err
	}
}

// noteTombstones remembers that the store had none at a version: as long as it is at that one, nobody need look.
func (s *Store) noteTombstones(version uint64, some bool) {
	if !some {
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

// anythingToReap tells whether there is something to do, and where there will be when somebody has ended, what he is at work on.
func (s *Store) anythingToReap(ctx context.Context) (ok bool, busy *Work, err error) {
	if quiet, err := s.isQuiet(ctx); quiet || err != nil {
		return false, nil, err
	}
	session, err := s.pool.EnterRunning(ctx)
	if err != nil || session == nil {
		return false, nil, err
	}
	o := &op{Session: session, s: s}
	defer o.Exit()
	var left []metadata.ThinID
	err = o.view(ctx, func(tx *metadata.Tx) (err error) {
		all, err := tx.Tombstones()
		if err == nil {
			s.noteTombstones(tx.Version(), len(all) > 0)
			left, err = s.tombstones(tx)
		}
		return err
	})
	if err != nil {
		return false, nil, fmt.Errorf("look for removed nodes: %w", err)
	}
	for _, id := range without(o.closed(left), s.failedLast()) {
		held, err := o.LockedByOthers(id)
		if err != nil || !held {
			return err == nil, nil, err
		}
		busy = &Work{id}
	}
	return false, busy, nil
}

// without leaves out some of the ids.
func without(ids []metadata.ThinID, not map[metadata.ThinID]bool) []metadata.ThinID {
	return slices.DeleteFunc(ids, func(id metadata.ThinID) bool { return not[id] })
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

func (s *Store) rememberFailing(ids map[metadata.ThinID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing = ids
}

func (s *Store) failedLast() map[metadata.ThinID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failing // never changed, only replaced
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
