package thinmeta

import (
	"context"
	"fmt"
	"iter"
)

// Change is how two devices differ at a block.
type Change uint8

const (
	// Same is a block that both share.
	Same Change = iota
	// Different is a block that both have, each its own. What is in them may
	// still be equal.
	Different
	// LeftOnly is a block that only the first device has; the second reads as
	// zero there, or as its external origin.
	LeftOnly
	// RightOnly is a block that only the second device has.
	RightOnly
)

var changeWords = [...]string{"same", "different", "left only", "right only"}

// String is "same", "different", "left only" or "right only".
func (c Change) String() string {
	if int(c) < len(changeWords) {
		return changeWords[c]
	}
	return fmt.Sprintf("change %d", uint8(c))
}

// Difference is a run of blocks at which two devices differ in the same way,
// or not at all, and that lie one behind the other on the data device.
type Difference struct {
	Change        Change
	Begin, Length uint64 // on the thin devices
	// Left and Right are where the run begins on the data device, for the
	// device that has it.
	Left, Right uint64
}

// DiffOptions say what a comparison tells.
type DiffOptions struct {
	// Same asks for what is the same, too. Without it, parts of the metadata
	// that both devices share are not even read, and the comparison takes as
	// long as there are differences.
	Same bool
}

// Diff compares the mappings of two devices, in the order of their blocks.
// Blocks that neither has are left out.
//
// An error is [ErrNoDevice], the context's, or a [*Damage], after which it
// goes on: of the blocks that the Damage names, nothing is known, whatever the
// other device has there.
func (m *Metadata) Diff(ctx context.Context, left, right uint64, o DiffOptions) iter.Seq2[Difference, error] {
	return func(yield func(Difference, error) bool) {
		d := differ{ctx: ctx, same: o.Same, yield: yield}
		for i, id := range []uint64{left, right} {
			root, err := m.root(ctx, id)
			if err != nil {
				yield(Difference{}, err)
				return
			}
			d.sides[i] = diffSide{cursor: m.cursor(root, mappingTree, id)}
		}
		if d.skips() {
			return
		}
		d.sides[0].measure(ctx)
		d.sides[1].measure(ctx)
		for d.step() {
		}
	}
}

// diffSide is one of the devices.
type diffSide struct {
	*cursor
	height int // of the tree, as far as its first leaf tells
	it     item
	ok     bool
	// The other side may still have to come to what damage hid here.
	hiding
}

func (s *diffSide) look() { s.it, s.ok = s.item() }

// measure finds the height with a cursor of its own. Damage leaves it where it
// is: the height only helps to find what is shared.
func (s *diffSide) measure(ctx context.Context) {
	c := &cursor{m: s.m, at: s.at, stack: []frame{s.stack[0]}}
	for {
		it, ok := c.item()
		if !ok || it.entry || c.enter(ctx) != nil {
			s.height = len(c.stack)
			return
		}
	}
}

// level is how far above the entries the item is.
func (s *diffSide) level() int { return s.height - s.it.depth }

// differ goes through two trees at once. Where both stand before the same
// subtree, both pass it; so a subtree is entered only when it is the larger
// one of the two, or begins before the other.
type differ struct {
	ctx   context.Context
	same  bool
	yield func(Difference, error) bool
	sides [2]diffSide
	run   Difference
}

// skips tells whether both sides stand before the same, and nobody wants to
// know what is in it.
func (d *differ) skips() bool {
	l, r := &d.sides[0], &d.sides[1]
	l.look()
	r.look()
	return !d.same && l.ok && r.ok && !l.it.entry && !r.it.entry && l.it.block == r.it.block
}

// step does one thing, and tells whether to go on.
func (d *differ) step() bool {
	l, r := &d.sides[0], &d.sides[1]
	skip := d.skips()
	switch {
	case !l.ok && !r.ok:
		d.flush()
		return false
	case skip:
		l.next()
		r.next()
		return true
	case l.ok && r.hides(l.it.keys()):
		l.next()
		return true
	case r.ok && l.hides(r.it.keys()):
		r.next()
		return true
	case !r.ok || l.ok && l.it.last < r.it.first:
		return d.alone(l, LeftOnly)
	case !l.ok || r.it.last < l.it.first:
		return d.alone(r, RightOnly)
	case l.it.entry && r.it.entry:
		return d.both(l, r)
	}
	return d.narrow(l, r)
}

func (i item) keys() span { return span{i.first, i.last} }

// alone does an item that the other side has nothing for.
func (d *differ) alone(s *diffSide, change Change) bool {
	if !s.it.entry {
		return d.enter(s)
	}
	at := mappingAt(s.it.leaf, s.it.i)
	s.next()
	diff := Difference{Change: change, Begin: at.Begin, Length: 1, Left: at.Data}
	if change == RightOnly {
		diff.Left, diff.Right = 0, at.Data
	}
	return d.add(diff)
}

// both does a block that both sides have.
func (d *differ) both(l, r *diffSide) bool {
	left, right := mappingAt(l.it.leaf, l.it.i), mappingAt(r.it.leaf, r.it.i)
	l.next()
	r.next()
	diff := Difference{Change: Different, Begin: left.Begin, Length: 1, Left: left.Data, Right: right.Data}
	if left.Data == right.Data {
		diff.Change = Same
	}
	return d.add(diff)
}

// narrow enters a subtree, as the two items overlap and are not alike.
func (d *differ) narrow(l, r *diffSide) bool {
	switch {
	case l.it.entry:
		return d.enter(r)
	case r.it.entry:
		return d.enter(l)
	case l.level() != r.level():
		if l.level() > r.level() {
			return d.enter(l)
		}
		return d.enter(r)
	case l.it.first != r.it.first:
		if l.it.first < r.it.first {
			return d.enter(l)
		}
		return d.enter(r)
	}
	return d.enter(l) && d.enter(r)
}

func (d *differ) enter(s *diffSide) bool {
	err := s.cursor.enter(d.ctx)
	if err == nil {
		return true
	}
	s.next()
	s.hide(s.it.keys())
	return d.flush() && d.yield(Difference{}, err) && d.ctx.Err() == nil
}

func (d *differ) add(diff Difference) bool {
	if diff.Change == Same && !d.same {
		return true
	}
	if d.run.follows(diff) {
		d.run.Length++
		return true
	}
	more := d.flush()
	d.run = diff
	return more
}

func (d *differ) flush() bool {
	run := d.run
	d.run = Difference{}
	return run.Length == 0 || d.yield(run, nil)
}

// follows tells whether next can be put at the end.
func (d Difference) follows(next Difference) bool {
	return d.Length > 0 && next.Change == d.Change && next.Begin == d.Begin+d.Length &&
		(d.Change == RightOnly || next.Left == d.Left+d.Length) && (d.Change == LeftOnly || next.Right == d.Right+d.Length)
}
