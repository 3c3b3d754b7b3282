package pool

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// What a pool gets that was not told how to grow and when to refuse.
const (
	defaultGrowAt  = 80
	defaultGrowBy  = 20
	defaultMinFree = 10
)

// Bounds of percentages, which a record can never leave: of GrowAt and MinFree, and of GrowBy and Overcommit.
const (
	maxPart  = 99
	maxRatio = 1_000_000
)

// completeSpace fills in the defaults: 0 is the default, less than 0 is none. What comes out means what it says in a record.
func completeSpace(s Space) Space {
	for value, def := range map[*int]int{&s.GrowAt: defaultGrowAt, &s.GrowBy: defaultGrowBy, &s.MinFree: defaultMinFree, &s.Overcommit: 0} {
		*value = max(defaulted(*value, def), 0)
	}
	s.GrowLimit = max(s.GrowLimit, 0)
	return s
}

// checkSpace tells whether a complete Space can be that of a pool with that much data. The error is ErrInvalid.
func checkSpace(s Space, dataSize int64) error {
	switch {
	case s.GrowAt < 0 || s.GrowAt > maxPart:
		return fmt.Errorf("grow at %d%%: 1 to %d: %w", s.GrowAt, maxPart, errs.ErrInvalid)
	case s.GrowBy < 0 || s.GrowBy > maxRatio || s.GrowBy == 0 && s.GrowAt > 0:
		return fmt.Errorf("grow by %d%%: 1 to %d: %w", s.GrowBy, maxRatio, errs.ErrInvalid)
	case s.GrowLimit != 0 && (s.GrowLimit < dataSize || s.GrowLimit > maxSize):
		return fmt.Errorf("grow limit of %d bytes: at least the %d that the data has: %w", s.GrowLimit, dataSize, errs.ErrInvalid)
	case s.MinFree < 0 || s.MinFree > maxPart:
		return fmt.Errorf("min free %d%%: up to %d: %w", s.MinFree, maxPart, errs.ErrInvalid)
	case s.Overcommit < 0 || s.Overcommit > maxRatio:
		return fmt.Errorf("overcommit %d%%: 1 to %d: %w", s.Overcommit, maxRatio, errs.ErrInvalid)
	case s.Hook != "" && !filepath.IsAbs(s.Hook):
		return fmt.Errorf("hook %q: must be an absolute path: %w", s.Hook, errs.ErrInvalid)
	}
	return nil
}

// checkHook tells whether a hook that is set now can be started: what is missing then would be known when the pool is full. A hook that
// is set already is not looked at again. The error is ErrInvalid.
func checkHook(program string) error {
	if program == "" {
		return nil
	}
	info, err := os.Stat(program)
	switch {
	case !utf8.ValidString(program): // a record could not hold it
		return fmt.Errorf("hook %q: its name is not UTF-8: %w", program, errs.ErrInvalid)
	case err != nil:
		return fmt.Errorf("hook: %w: %w", err, errs.ErrInvalid)
	case !info.Mode().IsRegular() || info.Mode()&0o111 == 0:
		return fmt.Errorf("hook %q: must be a file that can be executed: %w", program, errs.ErrInvalid)
	}
	return nil
}

// SetSpace changes how a pool grows and what it refuses, and returns what it is then. A process that serves the pool learns of it at
// once. Errors: ErrInvalid, ErrNotFound.
func SetSpace(ctx context.Context, dirs Dirs, name string, change func(*Space)) (Space, error) {
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return Space{}, err
	}
	defer p.Close()
	s, err := p.Hold(ctx)
	if err != nil {
		return Space{}, err
	}
	defer s.Exit()
	now, err := s.setSpace(ctx, change)
	if err != nil {
		return now, fmt.Errorf("set pool %q: %w", name, err)
	}
	return now, nil
}

func (s *Session) setSpace(ctx context.Context, change func(*Space)) (now Space, err error) {
	record, err := s.current(ctx)
	if err != nil {
		return now, err
	}
	if now = record.Space; !changes(now, change) {
		return now, nil
	}
	err = s.Records.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		now = r.Space
		change(&now)
		if now.GrowAt > 0 && now.GrowBy == 0 {
			now.GrowBy = defaultGrowBy
		}
		limitFrom := r.Backing.DataSize
		if now.GrowLimit == r.Space.GrowLimit { // it was passed by hand, with pool extend
			limitFrom = 0
		}
		if err := checkSpace(now, limitFrom); err != nil {
			return err
		}
		if now.Hook != r.Space.Hook {
			if err := checkHook(now.Hook); err != nil {
				return err
			}
		}
		r.Space = now
		return tx.PutPool(r)
	})
	return now, err
}

func changes(s Space, change func(*Space)) bool {
	before := s
	change(&s)
	return s != before
}
