package metadata

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
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
	fn      func(*Tx) error
	lead    chan struct{} // closed when it is his turn
	refused error         // of fn in the transaction that runs, for what others may have changed in it before
	done    chan struct{} // closed when err is what came of it
	err     error
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

// end says what came of it.
func (p *part) end(err error) {
	p.err = failing(noSpace(err))
	close(p.done)
}

// UpdateTogether is Update for a function that may run more than once, in another's goroutine, and in one transaction with those of others who come at the same
// time. Each sees what those before it have changed. One that returns an error changes nothing, and keeps no other from it; the error is told when
// what it may be about is durable. Where there is no room for all, there may be for some.
func (s *Store) UpdateTogether(ctx context.Context, fn func(tx *Tx) error) error {
	p := &part{fn: fn, lead: make(chan struct{}), done: make(chan struct{})}
	if !s.together.join(p) {
		if ended, err := s.together.wait(ctx, p); ended {
			_ = s.lookedLast()
			return err
		}
	}
	defer s.together.pass()
	unlock, err := s.locker.LockStore(ctx, false)
	if err != nil {
		s.together.leave(p)
		return fmt.Errorf("lock record store %s: %w", s.path, err)
	}
	defer unlock()
	s.updateAll(s.together.take(), s.lookedLast())
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

// updateAll makes one transaction of all parts or, where there is no room for that, one of each. All are told. The store's lock is held.
func (s *Store) updateAll(parts []*part, looked *unix.Stat_t) {
	version, err := s.updateOnce(parts, looked)
	if len(parts) == 1 || !errors.Is(noSpace(err), errs.ErrNoSpace) || !s.before(version) {
		tell(parts, err)
		return
	}
	for _, p := range parts {
		alone := []*part{p}
		_, err := s.updateOnce(alone, nil)
		tell(alone, err)
	}
}

// tell tells all what came of a transaction. Nobody hears that he was refused where it failed: what he was refused for may not have happened.
func tell(parts []*part, err error) {
	for _, p := range parts {
		if err == nil {
			p.end(p.refused)
		} else {
			p.end(err)
		}
	}
}

// before tells whether the store is certainly older than a version: a header that the disk may not have taken is there to be read nevertheless.
func (s *Store) before(version uint64) bool {
	v, err := versionAt(s.path)
	return err == nil && v < version
}

// updateOnce makes one transaction of all parts but those that are refused, which is found by trying. Its version and error are returned.
func (s *Store) updateOnce(parts []*part, looked *unix.Stat_t) (version uint64, err error) {
	for _, p := range parts {
		p.refused = nil
	}
	err = s.use(false, looked, func(db *bbolt.DB) error {
		for slices.ContainsFunc(parts, func(p *part) bool { return p.refused == nil }) {
			s.updates.Add(1)
			refused := false
			err := db.Update(func(btx *bbolt.Tx) error {
				version = uint64(btx.ID())
				return s.run(btx, func(tx *Tx) (err error) {
					refused, err = runAll(tx, parts)
					return err
				})
			})
			if !refused {
				return err
			}
		}
		return nil
	})
	return version, err
}

// runAll runs all that were not refused, up to one that is. Of those after him, others may be refused now.
func runAll(tx *Tx, parts []*part) (refused bool, err error) {
	for i, p := range parts {
		if p.refused != nil {
			continue
		}
		if p.refused = p.fn(tx); p.refused != nil {
			for _, later := range parts[i+1:] {
				later.refused = nil
			}
			return true, p.refused
		}
	}
	return false, nil
}
