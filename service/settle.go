package service

import (
	"context"
	"errors"
	"io/fs"
	"sync"
	"time"

	"github.com/dmlayer/dmlayer/layer"
)

// settler finishes what dead processes left, as soon as they are dead: the kernel tells when somebody closes the pool's lock file, and
// whoever was at work when it was looked at is waited for by waiting for his locks.
type settler struct {
	c      Config
	store  works
	others func() // is told that somebody has done something

	departures func(context.Context) (<-chan struct{}, error)

	failing string // what was last logged to have failed

	mu      sync.Mutex
	waiting map[layer.Work]bool
	over    chan struct{} // somebody has ended
	missed  chan struct{} // somebody could not be waited for
}

// works is what a settler needs of a *layer.Store.
type works interface {
	Settle(ctx context.Context) ([]layer.Work, error)
	WaitFor(ctx context.Context, work layer.Work) error
}

// settleAgain is how long what failed is left alone.
const settleAgain = time.Minute

// maxWaiting bounds how many are waited for at once, each by a thread. Those beyond it are found when the next of them ends.
const maxWaiting = 64

// newSettler returns a settler; departures is that of the store's pool.
func newSettler(c Config, store works, departures func(context.Context) (<-chan struct{}, error), others func()) *settler {
	return &settler{
		c: c, store: store, departures: departures, others: others,
		waiting: map[layer.Work]bool{}, over: make(chan struct{}, 1), missed: make(chan struct{}, 1),
	}
}

// run is the task.
func (s *settler) run(ctx context.Context) error {
	gone, err := s.departures(ctx)
	if errors.Is(err, fs.ErrNotExist) {
		return errGone
	}
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var waits sync.WaitGroup
	defer waits.Wait()
	defer cancel()
	var again <-chan time.Time // one for all that has failed; nil is nothing
	for look := true; ; {
		if failed := !look || !s.settle(ctx, &waits); failed && again == nil {
			again = time.After(settleAgain)
		}
		look = true
		select {
		case <-ctx.Done():
			return nil
		case <-again:
			again = nil
		case <-s.missed:
			look = false
		case _, ok := <-gone:
			if !ok {
				if ctx.Err() == nil {
					return errGone
				}
				return nil
			}
			s.others()
		case <-s.over:
		}
	}
}

// settle looks once, and tells whether it could.
func (s *settler) settle(ctx context.Context, waits *sync.WaitGroup) bool {
	busy, err := s.store.Settle(ctx)
	if err != nil {
		if text := err.Error(); ctx.Err() == nil && text != s.failing {
			s.failing = text
			s.c.Logger.Warn("what dead processes left is not finished, and tried again later", "error", err)
		}
		return false
	}
	s.failing = ""
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, work := range busy {
		if s.waiting[work] || len(s.waiting) >= maxWaiting {
			continue
		}
		s.waiting[work] = true
		waits.Go(func() { s.wait(ctx, work) })
	}
	return true
}

// wait waits for one who is at work, and has everything looked at again when he has ended. Where it cannot wait that is not at once: what keeps it from
// waiting, such as a lack of descriptors, would make it go round and round.
func (s *settler) wait(ctx context.Context, work layer.Work) {
	err := s.store.WaitFor(ctx, work)
	s.mu.Lock()
	delete(s.waiting, work)
	s.mu.Unlock()
	told := s.over
	if err != nil {
		if ctx.Err() == nil {
			s.c.Logger.Debug("who is at work is not waited for, and looked at again later", "error", err)
		}
		told = s.missed
	}
	select {
	case told <- struct{}{}:
	default:
	}
}
