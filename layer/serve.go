package layer

import (
	"context"
	"slices"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// Pool returns the pool that the store is of, for a process that lives with it: what grows it and watches it. It is the
// store's, and closed with it.
func (s *Store) Pool() *pool.Pool { return s.pool }

// Work is something that somebody is doing to a thin device.
type Work struct{ id metadata.ThinID }

// Settle finishes what dead processes left, as Open does, in a pool that runs; one that does not is not started. It returns what
// others are at work on now: should one of them die, there is something to finish as soon as WaitFor returns.
func (s *Store) Settle(ctx context.Context) ([]Work, error) {
	session, err := s.pool.EnterRunning(ctx)
	if err != nil || session == nil {
		return nil, err
	}
	o := &op{Session: session, s: s}
	defer o.Exit()
	if err := o.recover(ctx); err != nil {
		return nil, err
	}
	marked, err := o.Marked()
	if err != nil {
		return nil, err
	}
	inFlight, tombs, err := o.candidates(ctx)
	if err != nil {
		return nil, err
	}
	var busy []Work
	for _, id := range slices.Concat(marked, inFlight, tombs) {
		held, err := o.LockedByOthers(id)
		if err != nil {
			return nil, err
		}
		if held {
			busy = append(busy, Work{id})
		}
	}
	return busy, nil
}

// WaitFor waits until nobody is at work there any more, which may be because he died.
func (s *Store) WaitFor(ctx context.Context, w Work) error {
	o, err := s.reader(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	return o.LockIDs(ctx, w.id)
}
