package thinmeta

import (
	"errors"
	"fmt"
	"math"
)

// spaceMaps goes through the blocks of which the space maps consist: they have
// references, too.
func (c *checker) spaceMaps() error {
	if !c.counting() {
		return nil
	}
	s := c.m.super
	if err := errors.Join(c.walk(s.DataSpace.BitmapRoot, dataBitmapTree, 0), c.walk(s.DataSpace.RefCountRoot, dataCountTree, 0),
		c.walk(s.MetadataSpace.RefCountRoot, metaCountTree, 0)); err != nil {
		return err
	}
	at := place{tree: metaBitmapIndex, last: maxKey}
	index := s.MetadataSpace.BitmapRoot
	if !c.inRange(index, at) {
		return nil
	}
	c.refs[MetadataSpace].add(index)
	b, err := c.m.blocks.get(index, kindIndex)
	if err != nil {
		c.lost(at.damage(index, err))
		return nil
	}
	at.above = []uint64{index}
	for i := range min(c.m.countReader(c.ctx, MetadataSpace).bitmapCount(), indexEntries) {
		c.bitmapReference(parseIndexEntry(b[bitmapHeader+indexEntrySize*i:]), at.at(i))
	}
	return nil
}

// counts compares the space maps with the references that were found.
func (c *checker) counts() error {
	if !c.counting() {
		return nil
	}
	for _, s := range []Space{DataSpace, MetadataSpace} {
		cmp := countComparer{checker: c, space: s, found: c.refs[s]}
		if err := cmp.run(); err != nil {
			return err
		}
	}
	return nil
}

// countComparer compares one space map with the references.
type countComparer struct {
	*checker
	space Space
	found refTable // what was compared is taken out

	stored  uint64 // blocks in use
	damaged bool
	hidden  []span // blocks whose stored counts could not be read
	last    *CountError
}

func (c *countComparer) run() error {
	r := c.m.countReader(c.ctx, c.space)
	r.look = c.index
	r.yield = c.take
	r.read()
	if err := c.ctx.Err(); err != nil {
		return fmt.Errorf("thinmeta: read metadata: %w", err)
	}
	hidden := merge(c.hidden)
	c.found.rest(func(block uint64, found uint32) {
		if !hidden.contains(block) {
			c.compare(block, 0, found)
		}
	})
	c.flush()
	if said := r.head.Allocated; !c.damaged && c.stored != said {
		c.report.stale(c.atSuperblock(fmt.Errorf("%d %s blocks are in use, not %d: %w", c.stored, c.space, said, ErrMismatch)))
	}
	return nil
}

// take is told what the space map has.
func (c *countComparer) take(r References, err error) bool {
	if err != nil {
		c.unread(err)
		return true
	}
	c.stored += r.Length
	for block := r.Begin; block < r.Begin+r.Length; block++ {
		c.compare(block, r.Count, c.found.take(block))
	}
	return true
}

// unread notes what could not be read. Going through the trees has met some of
// that before.
func (c *countComparer) unread(err error) {
	c.damaged = true
	var d *Damage
	if !errors.As(err, &d) {
		return
	}
	c.hidden = append(c.hidden, hiddenBlocks(d))
	if errors.Is(d, ErrMismatch) || !c.told[d.Block] {
		c.damage(d)
	}
}

// hiddenBlocks are the blocks whose counts are lost with the damage.
func hiddenBlocks(d *Damage) span {
	if d.Path.Tree != TreeDataBitmaps && d.Path.Tree != TreeMetadataBitmaps {
		return span{d.First, d.Last}
	}
	if d.Last >= math.MaxUint64/bitmapEntries-1 {
		return span{min(d.First, math.MaxUint64/bitmapEntries) * bitmapEntries, maxKey}
	}
	return span{d.First * bitmapEntries, (d.Last+1)*bitmapEntries - 1}
}

func (c *countComparer) compare(block uint64, stored, found uint32) {
	if stored == found || stored > found && c.incomplete {
		return
	}
	if l := c.last; l != nil && l.Begin+l.Length == block && l.Stored == stored && l.Found == found {
		l.Length++
		return
	}
	c.flush()
	c.last = &CountError{Space: c.space, Begin: block, Length: 1, Stored: stored, Found: found}
}

func (c *countComparer) flush() {
	if c.last != nil {
		c.report.count(c.last)
		c.last = nil
	}
}

// index compares what is said of a bitmap with the bitmap.
func (c *countComparer) index(i uint64, e indexEntry, b bitmap, at place) {
	total := c.m.countReader(c.ctx, c.space).head.Blocks - i*bitmapEntries
	entries := uint32(min(total, bitmapEntries))
	var free uint32
	first := entries
	for j := entries; j > 0; j-- {
		if b.count(int(j-1)) == 0 {
			free, first = free+1, j-1
		}
	}
	// Of a last bitmap that is not full, the kernel counts what is beyond its end as free.
	if e.free != free && e.free != free+bitmapEntries-entries {
		c.report.stale(at.damage(e.block, fmt.Errorf("%d blocks are free, not %d: %w", free, e.free, ErrMismatch)))
	}
	if e.noneFreeBelow > first {
		c.report.stale(at.damage(e.block, fmt.Errorf("block %d of the bitmap is free, and said to be below the first free one, %d: %w",
			first, e.noneFreeBelow, ErrMismatch)))
	}
}
