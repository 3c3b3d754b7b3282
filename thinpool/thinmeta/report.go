package thinmeta

import (
	"errors"
	"fmt"
)

// CountError is a run of blocks with a wrong number of references in a space
// map.
type CountError struct {
	Space         Space
	Begin, Length uint64
	// Stored is what the space map says, Found how many references there are.
	// Fewer stored than found is damage: the blocks will be taken for
	// something else while they are in use. More is a leak.
	Stored, Found uint32
}

// Error is "thinmeta: data blocks 5 to 8: 1 reference stored, 2 found: …".
func (e *CountError) Error() string {
	blocks := fmt.Sprintf("%s block %d", e.Space, e.Begin)
	if e.Length > 1 {
		blocks = fmt.Sprintf("%s blocks %d to %d", e.Space, e.Begin, e.Begin+e.Length-1)
	}
	s := fmt.Sprintf("thinmeta: %s: %d references stored, %d found", blocks, e.Stored, e.Found)
	if e.Leak() {
		return s + ": leaked"
	}
	return s + ": " + ErrMismatch.Error()
}

// Leak tells whether nothing is lost but space.
func (e *CountError) Leak() bool { return e.Stored > e.Found }

// Is finds [ErrMismatch], and [ErrDamaged] where it is no leak.
func (e *CountError) Is(target error) bool {
	return target == ErrMismatch || target == ErrDamaged && !e.Leak()
}

// Report is what [Metadata.Check] found. At most 1000 errors of each kind are
// kept.
type Report struct {
	Devices  uint64
	Nodes    uint64 // of all trees, each counted once
	Mappings uint64 // of all devices: what is shared counts for each

	// Damage are errors of type [*Damage] and [*CountError]: data is lost, or
	// will be if the pool is used.
	Damage []error
	// Leaks are blocks that are in use for nothing. Where Damage hides
	// references, it cannot be told, and there are none here.
	Leaks []*CountError
	// Stale are numbers that nothing depends on but what people are told and
	// where the kernel looks for free blocks first: they are wrong.
	Stale []error
	// Omitted is how many errors there were besides.
	Omitted int
}

// Err is nil where there is no damage. Leaks and stale numbers are none.
func (r *Report) Err() error { return errors.Join(r.Damage...) }

// Leaked is how many blocks of a space are in use for nothing. A block that
// has too many references but some is not yet.
func (r *Report) Leaked(s Space) uint64 {
	var n uint64
	for _, l := range r.Leaks {
		if l.Space == s && l.Found == 0 {
			n += l.Length
		}
	}
	return n
}

func (r *Report) damage(err error) { r.Damage = keep(r, r.Damage, err) }

func (r *Report) stale(err error) { r.Stale = keep(r, r.Stale, err) }

func (r *Report) count(e *CountError) {
	if e.Leak() {
		r.Leaks = keep(r, r.Leaks, e)
		return
	}
	r.damage(e)
}

func keep[E any](r *Report, errs []E, err E) []E {
	if len(errs) < maxErrors {
		return append(errs, err)
	}
	r.Omitted++
	return errs
}
