package service

import (
	"context"
	"errors"
	"io/fs"
	"sync"

	"github.com/dmlayer/dmlayer/layer"
)

// settler finishes what dead processes left, as soon as they are dead: the kernel tells when somebody closes the pool's lock file, and
// whoever was at work when it was looked at is waited for by waiting for his locks.
type settler struct {
	c      Config
	store  *layer.Store
	others func() // is told that somebody has done something

	failing string // what was last logged to have failed

	mu      sync.Mutex
	waiting map[layer.Work]bool
	over    chan struct{}
}

// maxWaiting bounds how many are waited for at once, each by a thread. Those beyond it are found when the next of them ends.
const maxWaiting = 64

func newSettler(c Config, store *layer.Store, others func()) *settler {
	return &settler{c: c, store: store, others: others, waiting: map[layer.Work]bool{}, over: make(chan struct{}, 1)}
}

// run is the task.
func (s *settler) run(ctx context.Context) error {
	gone, err := s.store.Pool().Departures(ctx)
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
	for {
		s.settle(ctx, &waits)
		select {
		case <-ctx.Done():
			return nil
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

func (s *settler) settle(ctx context.Context, waits *sync.WaitGroup) {
	busy, err := s.store.Settle(ctx)
	if err != nil {
		if text := err.Error(); ctx.Err() == nil && text != s.failing {
			s.failing = text
			s.c.Logger.Warn("what dead processes left is not finished, and tried again later", "error", err)
		}
		return
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
}

// wait waits for one who is at work, and has everything looked at again when he has ended.
func (s *settler) wait(ctx context.Context, work layer.Work) {
	err := s.store.WaitFor(ctx, work)
	s.mu.Lock()
	delete(s.waiting, work)
	s.mu.Unlock()
	if err != nil {
		return
	}
	select {
	case s.over <- struct{}{}:
	default:
	}
}
