package thinmeta

import "encoding/binary"

// This file writes the space maps of what a [builder] has counted.

// dataSpace writes the data space map.
func (b *builder) dataSpace() (SpaceMapRoot, error) {
	s := SpaceMapRoot{Blocks: b.data}
	var index [][]byte
	for i := range bitmapsFor(s.Blocks) {
		block, err := b.take()
		if err != nil {
			return s, err
		}
		entry, used, err := b.bitmap(DataSpace, block, i, s.Blocks)
		if err != nil {
			return s, err
		}
		index = append(index, entry)
		s.Allocated += used
	}
	var err error
	s.BitmapRoot, err = b.tree(dataBitmapTree.valueSize, len(index), func(yield func(uint64, []byte) bool) {
		for i, e := range index {
			if !yield(uint64(i), e) {
				return
			}
		}
	})
	if err != nil {
		return s, err
	}
	s.RefCountRoot, err = b.countTree(DataSpace, s.Blocks)
	return s, err
}

// metadataSpace writes the metadata space map. Its own blocks are counted in it, so that they are taken before it is written; they are
// referred to once, and therefore none of them is in the tree of counts.
func (b *builder) metadataSpace() (SpaceMapRoot, error) {
	s := SpaceMapRoot{Blocks: b.blocks}
	blocks := make([]uint64, bitmapsFor(s.Blocks))
	var err error
	for i := range blocks {
		if blocks[i], err = b.take(); err != nil {
			return s, err
		}
	}
	if s.BitmapRoot, err = b.take(); err != nil {
		return s, err
	}
	if s.RefCountRoot, err = b.countTree(MetadataSpace, s.Blocks); err != nil {
		return s, err
	}
	index := alignedBytes(BlockSize)
	for i, block := range blocks {
		entry, used, err := b.bitmap(MetadataSpace, block, uint64(i), s.Blocks)
		if err != nil {
			return s, err
		}
		copy(index[bitmapHeader+indexEntrySize*i:], entry)
		s.Allocated += used
	}
	return s, b.write(s.BitmapRoot, index, salts[kindIndex])
}

func bitmapsFor(blocks uint64) uint64 { return blocks/bitmapEntries + min(blocks%bitmapEntries, 1) }

// bitmap writes the i-th bitmap of a space, and returns what the index says of it and how many of its blocks are in use.
func (b *builder) bitmap(space Space, block, i, total uint64) (entry []byte, used uint64, err error) {
	if err := b.ctx.Err(); err != nil {
		return nil, 0, err
	}
	bytes := alignedBytes(BlockSize)
	entries := min(bitmapEntries, total-i*bitmapEntries)
	firstFree := entries
	for j := range entries {
		n := min(b.refs[space].get(i*bitmapEntries+j), manyReferences)
		if n == 0 {
			firstFree = min(firstFree, j)
			continue
		}
		used++
		bytes[bitmapHeader+j/4] |= byte(n>>1|n&1<<1) << (j % 4 * 2)
	}
	le := binary.LittleEndian
	entry = le.AppendUint64(nil, block)
	// As the kernel has it: for all that the bitmap has room for. A growth only adds to the last bitmap's blocks, and one with none free is passed over.
	entry = le.AppendUint32(entry, uint32(bitmapEntries-used))
	entry = le.AppendUint32(entry, uint32(firstFree))
	return entry, used, b.write(block, bytes, salts[kindBitmap])
}

// countTree writes the counts that bitmaps have no room for.
func (b *builder) countTree(space Space, total uint64) (uint64, error) {
	many := func(yield func(uint64, []byte) bool) {
		b.refs[space].each(func(block uint64, n uint32) bool {
			return n < manyReferences || block >= total || yield(block, binary.LittleEndian.AppendUint32(nil, n))
		})
	}
	n := 0
	for range many {
		n++
	}
	return b.tree(dataCountTree.valueSize, n, many)
}
