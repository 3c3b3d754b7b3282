package thinmeta

import (
	"context"
	"iter"
)

// Mapping is a run of blocks of a device that lie one behind the other on the
// data device, and were mapped at the same time. All but Time is counted in
// blocks of the pool ([Superblock.DataBlockSize]).
type Mapping struct {
	Begin  uint64 // on the thin device
	Data   uint64 // on the data device
	Length uint64
	// Time is the pool's clock when the blocks were mapped. They are treated as
	// shared if that is before the device's SnapshotTime.
	Time uint32
}

// End is the block behind the mapping.
func (m Mapping) End() uint64 { return m.Begin + m.Length }

// follows tells whether next can be put at the end of the mapping.
func (m Mapping) follows(next Mapping) bool {
	return m.Length > 0 && next.Begin == m.End() && next.Data == m.Data+m.Length && next.Time == m.Time
}

const (
	timeBits = 24
	timeMask = 1<<timeBits - 1
)

// mappingAt is one entry of a leaf.
func mappingAt(n node, i int) Mapping {
	v := n.uint64(i)
	return Mapping{Begin: n.key(i), Data: v >> timeBits, Length: 1, Time: uint32(v & timeMask)}
}

// Mappings goes through the mappings of a device in the order of its blocks,
// as few as can be.
//
// An error is [ErrNoDevice], the context's, or a [*Damage], after which it
// goes on: of the blocks that the Damage names, nothing is known.
func (m *Metadata) Mappings(ctx context.Context, id uint64) iter.Seq2[Mapping, error] {
	return m.runs(ctx, id, nil, nil)
}

// runs are the mappings of a device without the subtrees that skip wants to
// skip, by the block, and without the blocks that keep does not want to keep.
func (m *Metadata) runs(ctx context.Context, id uint64, skip, keep func(block uint64) bool) iter.Seq2[Mapping, error] {
	return func(yield func(Mapping, error) bool) {
		root, err := m.root(ctx, id)
		if err != nil {
			yield(Mapping{}, err)
			return
		}
		r := runner{yield: yield}
		for c := m.cursor(root, mappingTree, id); r.step(ctx, c, skip, keep); {
		}
	}
}

// runner puts mappings together.
type runner struct {
	yield func(Mapping, error) bool
	run   Mapping
}

// step does one item and tells whether to go on.
func (r *runner) step(ctx context.Context, c *cursor, skip, keep func(uint64) bool) bool {
	it, ok := c.item()
	if !ok {
		r.flush()
		return false
	}
	if it.entry {
		c.next()
		mapping := mappingAt(it.leaf, it.i)
		return keep != nil && !keep(mapping.Data) || r.add(mapping)
	}
	if skip != nil && skip(it.block) {
		c.next()
		return true
	}
	if err := c.enter(ctx); err != nil {
		c.next()
		return r.flush() && r.yield(Mapping{}, err) && ctx.Err() == nil
	}
	return true
}

func (r *runner) add(mapping Mapping) bool {
	if r.run.follows(mapping) {
		r.run.Length++
		return true
	}
	more := r.flush()
	r.run = mapping
	return more
}

func (r *runner) flush() bool {
	run := r.run
	r.run = Mapping{}
	return run.Length == 0 || r.yield(run, nil)
}
