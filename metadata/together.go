package metadata

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
)

// together is where those wait who want the same thing at the same time: a durable transaction. The first of them gets the store's lock and makes one for
// all who have come by then. Of those who come later the next one does.
type together struct {
	mu      sync.Mutex
	led     bool // somebody is at it
	waiting []*part
}

// part is what one of them wants.
type part struct {
	fn   func(*Tx) error
	lead chan struct{} // closed when it is his turn
	done chan struct{} // closed when err is what came of it
	err  error
}

// join waits with the others. Whether nobody else is at it, so that it is his turn, is told.
func (t *together) join(p *part) (first bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.waiting = append(t.waiting, p)
	first = !t.led
	t.led = true
	return first
}

// take returns all who wait.
func (t *together) take() []*part {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := t.waiting
	t.waiting = nil
	return all
}

// leave tells whether he waited still, which he does not any more.
func (t *together) leave(p *part) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := slices.Index(t.waiting, p)
	if i >= 0 {
		t.waiting = slices.Delete(t.waiting, i, i+1)
	}
	return i >= 0
}

// pass gives the turn to the next.
func (t *together) pass() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.led = len(t.waiting) > 0
	if t.led {
		close(t.waiting[0].lead)
	}
}

// end says what came of it. A second time changes nothing.
func (p *part) end(err error) {
	select {
	case <-p.done:
	default:
		p.err = failing(noSpace(err))
		close(p.done)
	}
}

// UpdateTogether is Update for a function that may run more than once, in another's goroutine, and in one transaction with those of others who come at the same
// time. Each sees what those before it have changed. One that returns an error changes nothing, and keeps no other from it.
func (s *Store) UpdateTogether(ctx context.Context, fn func(tx *Tx) error) error {
	p := &part{fn: fn, lead: make(chan struct{}), done: make(chan struct{})}
	if !s.together.join(p) {
		if ended, err := s.together.wait(ctx, p); ended {
			_ = s.lookedLast()
			return err
		}
	}
	defer s.together.pass()
	var parts []*part
	err := s.transact(ctx, false, func(db *bbolt.DB) (err error) {
		parts = s.together.take()
		return s.updateAll(db, parts)
	})
	s.together.leave(p)
	for _, part := range append(parts, p) { // whoever has not been told
		part.end(err)
	}
	return p.err
}

// wait waits for somebody else. It is false where nobody else is at it any more.
func (t *together) wait(ctx context.Context, p *part) (ended bool, err error) {
	select {
	case <-p.done:
		return true, p.err
	case <-p.lead:
		return false, nil
	case <-ctx.Done():
	}
	select {
	case <-p.lead:
		return false, nil // and what he asks for fails, and passes the turn on
	default:
	}
	if t.leave(p) {
		t.passOn(p)
		return true, fmt.Errorf("lock record store: %w", context.Cause(ctx))
	}
	<-p.done // it runs
	return true, p.err
}

// passOn gives a turn on that came to one who has just left.
func (t *together) passOn(p *part) {
	select {
	case <-p.lead:
		t.pass()
	default:
	}
}

// updateAll makes one transaction of all parts but those that fail: each of these is found by trying, and told. The error is that of the transaction.
func (s *Store) updateAll(db *bbolt.DB, parts []*part) error {
	parts = slices.Clone(parts)
	for len(parts) > 0 {
		failed := -1
		s.updates.Add(1)
		err := db.Update(func(btx *bbolt.Tx) error {
			return s.run(btx, func(tx *Tx) error {
				for i, p := range parts {
					if err := p.fn(tx); err != nil {
						failed = i
						return err
					}
				}
				return nil
			})
		})
		if failed < 0 {
			for _, p := range parts {
				p.end(err)
			}
			return err
		}
		parts[failed].end(err)
		parts = slices.Delete(parts, failed, failed+1)
	}
	return nil
}
