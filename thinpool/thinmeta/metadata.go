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
	// Memory is read into, unless nil.
	Memory *Memory
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
	if o.CacheBytes <= 0 {
		o.CacheBytes = defaultCache
	}
	o.Memory.reset()
	m := &Metadata{blocks: newBlocks(r, o)}
	var err error
	m.super, err = m.superblock(r, o.Root)
	if err != nil {
		return nil, err
	}
	return m, nil
}

// superblock is read with what lies around it, which is wanted next.
func (m *Metadata) superblock(r io.ReaderAt, block uint64) (Superblock, error) {
	b, err := m.blocks.raw(block)
	if err != nil {
		return ReadSuperblockAt(r, block) // whose errors say what it is about
	}
	return parseSuperblockAt(b, block)
}

// Superblock is the superblock that Open read.
func (m *Metadata) Superblock() Superblock { return m.super }
