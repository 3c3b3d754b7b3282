package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
)

// Space is one of the two devices whose blocks are counted.
type Space uint8

const (
	// DataSpace is the data device, in blocks of the pool.
	DataSpace Space = iota
	// MetadataSpace is the metadata device, in blocks of [BlockSize] bytes.
	MetadataSpace
)

// String is "data" or "metadata".
func (s Space) String() string {
	if s == DataSpace {
		return "data"
	}
	return "metadata"
}

const (
	indexEntries   = 255
	indexEntrySize = 16
	bitmapHeader   = 16
	bitmapEntries  = (BlockSize - bitmapHeader) * 4
	// manyReferences is what a bitmap has for more references than two bits
	// can count: a tree has the number.
	manyReferences = 3
)

// References is a run of blocks that are referred to equally often. A data
// block is referred to by each leaf with a mapping to it, not by each device:
// devices share leaves.
type References struct {
	Begin, Length uint64
	Count         uint32
}

// References goes through a space map: the blocks that are in use, in order.
//
// An error is [ErrNoSpaceMap], the context's, or a [*Damage], after which it
// goes on.
func (m *Metadata) References(ctx context.Context, s Space) iter.Seq2[References, error] {
	return func(yield func(References, error) bool) {
		if m.super.Block != 0 {
			yield(References{}, fmt.Errorf("thinmeta: %s references: %w", s, ErrNoSpaceMap))
			return
		}
		r := m.countReader(ctx, s)
		r.yield = yield
		r.read()
	}
}

// indexEntry is what is said of a bitmap.
type indexEntry struct {
	block         uint64
	free          uint32
	noneFreeBelow uint32
}

func parseIndexEntry(b []byte) indexEntry {
	le := binary.LittleEndian
	return indexEntry{le.Uint64(b), le.Uint32(b[8:]), le.Uint32(b[12:])}
}

// bitmap is a block with two bits for each of 16320 blocks.
type bitmap []byte

// count is the number of references of a block, or manyReferences. The bits of
// each pair are in the other order than those of the number.
func (b bitmap) count(i int) uint32 {
	pair := uint32(b[bitmapHeader+i/4]>>(i%4*2)) & 3
	return pair>>1 | pair&1<<1
}
