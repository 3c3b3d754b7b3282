package thinmeta

import (
	"context"
	"fmt"
	"iter"
)

// Unshared goes through the mappings of a device that nothing else refers to,
// by the space maps: what deleting the device would free at once. It reads what
// belongs to the device alone and no other device's mappings. What a metadata
// snapshot refers to as well counts as shared.
//
// On the superblock of a pool in use ([Options].Root 0), where no metadata
// snapshot can help as it has no space maps, the result is good for those for
// whom being wrong has no consequence: blocks that are read may have become
// others meanwhile. A device that is not active does not change, though.
//
// An error is [ErrNoSpaceMap], and else those of [Metadata.Mappings]. What is
// referred to how often is taken for shared where that cannot be read.
func (m *Metadata) Unshared(ctx context.Context, id uint64) iter.Seq2[Mapping, error] {
	if m.super.Block != 0 {
		return func(yield func(Mapping, error) bool) {
			yield(Mapping{}, fmt.Errorf("thinmeta: what device %d shares: %w", id, ErrNoSpaceMap))
		}
	}
	data, nodes := counts{m: m, space: DataSpace}, counts{m: m, space: MetadataSpace}
	return m.runs(ctx, id,
		func(node uint64) bool { return !nodes.single(ctx, node) },
		func(block uint64) bool { return data.single(ctx, block) })
}

// counts looks reference counts up, one at a time.
type counts struct {
	m     *Metadata
	space Space
	have  bool
	i     uint64 // the bitmap that was read last
	last  bitmap
}

// single tells whether a block is known to be referred to once.
func (c *counts) single(ctx context.Context, block uint64) bool {
	i := block / bitmapEntries
	if !c.have || c.i != i {
		c.last = c.read(ctx, i)
		c.have, c.i = true, i
	}
	return c.last != nil && c.last.count(int(block%bitmapEntries)) == 1
}

// read is the i-th bitmap, nil where it cannot be read.
func (c *counts) read(ctx context.Context, i uint64) bitmap {
	find := c.dataEntry
	if c.space == MetadataSpace {
		find = c.metadataEntry
	}
	e, ok := find(ctx, i)
	if !ok {
		return nil
	}
	b, err := c.m.blocks.get(e.block, kindBitmap)
	if err != nil {
		return nil
	}
	return bitmap(b)
}

func (c *counts) dataEntry(ctx context.Context, i uint64) (indexEntry, bool) {
	it, ok, err := c.m.cursor(c.m.super.DataSpace.BitmapRoot, dataBitmapTree, 0).find(ctx, i)
	if err != nil || !ok {
		return indexEntry{}, false
	}
	return parseIndexEntry(it.leaf.value(it.i)), true
}

func (c *counts) metadataEntry(_ context.Context, i uint64) (indexEntry, bool) {
	b, err := c.m.blocks.get(c.m.super.MetadataSpace.BitmapRoot, kindIndex)
	if err != nil || i >= indexEntries {
		return indexEntry{}, false
	}
	return parseIndexEntry(b[bitmapHeader+indexEntrySize*i:]), true
}
