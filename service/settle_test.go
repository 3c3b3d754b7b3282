package service

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dmlayer/dmlayer/layer"
)

// oneAtWork is a pool in which somebody is at work on one thin device, and cannot be waited for as often as said.
type oneAtWork struct {
	looks, waits, unheard atomic.Int64
	ended                 chan struct{} // he has ended
}

func (w *oneAtWork) Settle(context.Context) ([]layer.Work, error) {
	w.looks.Add(1)
	select {
	case <-w.ended:
		return nil, nil
	default:
		return []layer.Work{{}}, nil
	}
}

func (w *oneAtWork) WaitFor(ctx context.Context, _ layer.Work) error {
	w.waits.Add(1)
	if w.unheard.Add(-1) >= 0 {
		return errors.New("no descriptors left")
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-w.ended:
		return nil
	}
}

func (w *oneAtWork) settler(gone <-chan struct{}) *settler {
	departures := func(context.Context) (<-chan struct{}, error) { return gone, nil }
	return newSettler(Config{Logger: slog.New(slog.DiscardHandler)}, w, departures, func() {})
}

// Who cannot be waited for is looked at again after a while, and no more often than that, also while others come and go; the end of the service
// waits for nothing.
func TestSettlesWhoCouldNotBeWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &oneAtWork{ended: make(chan struct{})}
		w.unheard.Store(3)
		gone := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- w.settler(gone).run(ctx) }()
		want := func(what string, looks, waits int64) {
			t.Helper()
			synctest.Wait()
			if w.looks.Load() != looks || w.waits.Load() != waits {
				t.Errorf("%s: looked %d times and waited %d times, want %d and %d", what, w.looks.Load(), w.waits.Load(), looks, waits)
			}
		}
		want("at first", 1, 1)
		<-time.After(settleAgain - time.Second)
		want("before it is time", 1, 1)
		<-time.After(time.Second)
		want("after a while", 2, 2)
		<-time.After(settleAgain / 2)
		gone <- struct{}{}
		want("with the next departure", 3, 3)
		<-time.After(settleAgain / 2)
		want("after the second while", 4, 4) // which is heard from now on
		<-time.After(10 * settleAgain)
		want("while he is waited for", 4, 4)
		close(w.ended)
		want("when he has ended", 5, 4)
		<-time.After(10 * settleAgain)
		want("with nothing left", 5, 4)
		cancel()
		if err := <-result; err != nil {
			t.Errorf("ended with %v", err)
		}
	})
}

// A service that ends does not sit out the while after which it would have looked again, nor leave anybody behind who waits.
func TestSettlerEnds(t *testing.T) {
	for _, unheard := range []int64{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			w := &oneAtWork{ended: make(chan struct{})}
			w.unheard.Store(unheard)
			gone, result, begin := make(chan struct{}), make(chan error, 1), time.Now()
			go func() { result <- w.settler(gone).run(t.Context()) }()
			synctest.Wait()
			close(gone) // as when the pool is destroyed
			if err := <-result; !errors.Is(err, errGone) || time.Since(begin) != 0 {
				t.Errorf("ended with %v after %v", err, time.Since(begin))
			}
		})
	}
}
