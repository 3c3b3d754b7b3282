package thinmeta

import (
	"io"
)

// Options say how metadata is read. The zero value reads a pool that is not
// active.
type Options struct {
	// Root is the block of the superblock of a metadata snapshot, as the pool's
	// status names it. 0 is the pool's own superblock, which changes while the
	// pool is active.
	Root uint64
	// CacheBytes bounds the cache, 0 for 8 MiB. Passes over everything use
	// more: see their documentation.
	CacheBytes int
}

const defaultCache = 8 << 20

// Metadata is the metadata of a pool, as of the moment that its superblock is
// of. It is safe for concurrent use.
type Metadata struct {
	super  Superblock
	blocks *blocks
}

// Open reads the superblock and checks it. Everything else is read when it is
// asked for. The errors are those of [ReadSuperblockAt].
//
// Blocks are read at offsets, in sizes and into memory that are multiples of
// [BlockSize], so that r can be a device that was opened with O_DIRECT. What
// was read is kept: after a metadata snapshot was released and taken anew, it
// takes another Open.
func Open(r io.ReaderAt, o Options) (*Metadata, error) {
	s, err := ReadSuperblockAt(r, o.Root)
	if err != nil {
		return nil, err
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCache
	}
	return &Metadata{s, newBlocks(r, o.CacheBytes)}, nil
}

// Superblock is the superblock that Open read.
func (m *Metadata) Superblock() Superblock { return m.super }
