package thinmeta

import (
	"context"
	"fmt"
)

// countReader reads a space map. Its methods that return a bool tell whether
// to go on.
type countReader struct {
	m     *Metadata
	ctx   context.Context
	space Space
	head  SpaceMapRoot
	yield func(References, error) bool
	// look is called, if it is set, for each bitmap that could be read, with
	// the place that it has.
	look func(i uint64, e indexEntry, b bitmap, at place)

	run References // not yielded yet
	// many has the counts that a bitmap has no room for. Those up to lostTo are
	// lost if lost is set.
	many   *cursor
	lost   bool
	lostTo uint64
}

func (m *Metadata) countReader(ctx context.Context, s Space) *countReader {
	r := &countReader{m: m, ctx: ctx, space: s, head: m.super.DataSpace}
	tree := dataCountTree
	if s == MetadataSpace {
		r.head, tree = m.super.MetadataSpace, metaCountTree
	}
	r.many = m.cursor(r.head.RefCountRoot, tree, 0)
	return r
}

func (r *countReader) read() {
	bitmaps := r.treeBitmaps
	if r.space == MetadataSpace {
		bitmaps = r.indexBitmaps
	}
	if bitmaps() {
		r.flush()
	}
}

// bitmapCount is how many bitmaps there have to be.
func (r *countReader) bitmapCount() uint64 {
	return r.head.Blocks/bitmapEntries + min(r.head.Blocks%bitmapEntries, 1)
}

// treeBitmaps reads the bitmaps of the data space map, which a tree leads to.
func (r *countReader) treeBitmaps() bool {
	c := r.m.cursor(r.head.BitmapRoot, dataBitmapTree, 0)
	for next := uint64(0); ; {
		it, ok, err := c.entry(r.ctx)
		switch {
		case err != nil:
			if !r.fail(err) {
				return false
			}
			next = it.last + 1 // zero behind the last key, where the cursor ends
			if it.last == maxKey {
				return true
			}
			continue
		case !ok:
			return r.missing(next, r.bitmapCount())
		case it.first >= r.bitmapCount():
			return r.missing(next, r.bitmapCount()) // what the kernel never looks at
		}
		if !r.missing(next, it.first) || !r.bitmap(it.first, parseIndexEntry(it.leaf.value(it.i)), c.placeOf(it)) {
			return false
		}
		next = it.first + 1
		c.next()
	}
}

// missing tells of bitmaps from next to before end that are not there.
func (r *countReader) missing(next, end uint64) bool {
	if next >= end {
		return true
	}
	at := place{tree: dataBitmapTree, first: next, last: end - 1}
	return r.fail(at.damage(r.head.BitmapRoot, fmt.Errorf("bitmaps are missing: %w", ErrMismatch)))
}

// indexBitmaps reads the bitmaps of the metadata space map, which a single
// block leads to.
func (r *countReader) indexBitmaps() bool {
	at := place{tree: metaBitmapIndex, last: maxKey}
	b, err := r.m.blocks.get(r.head.BitmapRoot, kindIndex)
	if err != nil {
		return r.fail(at.damage(r.head.BitmapRoot, err))
	}
	n := r.bitmapCount()
	if n > indexEntries {
		err := fmt.Errorf("%d blocks are more than there can be: %w", r.head.Blocks, ErrRange)
		if !r.fail((place{tree: treeType{name: TreeSuperblock}, last: maxKey}).damage(r.m.super.Block, err)) {
			return false
		}
		n = indexEntries
	}
	at.above = []uint64{r.head.BitmapRoot}
	for i := range n {
		if !r.bitmap(i, parseIndexEntry(b[bitmapHeader+indexEntrySize*i:]), at.at(i)) {
			return false
		}
	}
	return true
}

// bitmap reads the i-th bitmap.
func (r *countReader) bitmap(i uint64, e indexEntry, at place) bool {
	if err := r.ctx.Err(); err != nil {
		r.yield(References{}, fmt.Errorf("thinmeta: read metadata: %w", err))
		return false
	}
	b, err := r.m.blocks.get(e.block, kindBitmap)
	if err != nil {
		return r.fail(at.damage(e.block, err))
	}
	if r.look != nil {
		r.look(i, e, b, at)
	}
	begin := i * bitmapEntries
	for j := range min(bitmapEntries, r.head.Blocks-begin) {
		if !r.block(begin+j, bitmap(b).count(int(j))) {
			return false
		}
	}
	return true
}

func (r *countReader) block(block uint64, count uint32) bool {
	if count == 0 {
		return true
	}
	if count == manyReferences {
		var more bool
		if count, more = r.countOfMany(block); count == 0 {
			return more
		}
	}
	if r.run.Length > 0 && r.run.Begin+r.run.Length == block && r.run.Count == count {
		r.run.Length++
		return true
	}
	more := r.flush()
	r.run = References{block, 1, count}
	return more
}

// countOfMany looks up what the bitmap has no room for; 0 where that is lost.
func (r *countReader) countOfMany(block uint64) (uint32, bool) {
	if r.lost && block <= r.lostTo {
		return 0, true
	}
	it, ok, err := r.many.find(r.ctx, block)
	if err != nil {
		r.lost, r.lostTo = true, it.last
		return 0, r.fail(err)
	}
	if !ok || it.leaf.uint32(it.i) < manyReferences {
		err := fmt.Errorf("bitmap has more than two references, the tree not: %w", ErrMismatch)
		return 0, r.fail(r.many.at.at(block).damage(r.head.RefCountRoot, err))
	}
	return it.leaf.uint32(it.i), true
}

// fail yields what was before the error, and the error.
func (r *countReader) fail(err error) bool {
	return r.flush() && r.yield(References{}, err) && r.ctx.Err() == nil
}

func (r *countReader) flush() bool {
	run := r.run
	r.run = References{}
	return run.Length == 0 || r.yield(run, nil)
}
