package thinmeta

import (
	"container/list"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"
	"unsafe"
)

// kind is what a block has to be, by its checksum.
type kind uint8

const (
	kindNode kind = iota + 1
	kindBitmap
	kindIndex
)

// salts are mixed into the checksums, so that a block of one kind is none of
// another.
var salts = [...]uint32{kindNode: 121107, kindBitmap: 240779, kindIndex: 160478}

// blockLimit is how many blocks the kernel can have in metadata
// (THIN_METADATA_MAX_SECTORS in its dm-thin-metadata.h): as many as fit into
// the bitmaps of one index block.
const blockLimit = indexEntries * bitmapEntries

// Blocks are read in clusters, as metadata lies together and requests are
// dear.
const (
	clusterBlocks = 16
	clusterBytes  = clusterBlocks * BlockSize
)

// blocks reads blocks and keeps the last ones. It is safe for concurrent use.
type blocks struct {
	r      io.ReaderAt
	max    int // clusters
	memory *Memory

	mu       sync.Mutex
	clusters map[uint64]*list.Element
	recent   *list.List // of *cluster, the last used one in front
}

func newBlocks(r io.ReaderAt, o Options) *blocks {
	return &blocks{
		r: r, max: max(o.CacheBytes/clusterBytes, 4), memory: o.Memory,
		clusters: map[uint64]*list.Element{}, recent: list.New(),
	}
}

// cluster is what lies together. Its bytes never change once they were read,
// so that they can be used after it has left the cache.
type cluster struct {
	number uint64

	mu       sync.Mutex
	read     bool
	have     int // bytes that are there
	buf      []byte
	failed   bool                // as a whole: its blocks are read alone
	alone    [clusterBlocks]bool // read alone
	verified [clusterBlocks]kind // the kind that the checksum is right for
	errs     map[uint64]error    // of blocks that cannot be read alone
}

// get returns the bytes of a block whose checksum and number are right. They
// are not to be changed. The error is ErrChecksum, ErrRange or the device's.
func (b *blocks) get(block uint64, k kind) ([]byte, error) {
	if block >= blockLimit {
		return nil, fmt.Errorf("metadata has at most %d blocks: %w", uint64(blockLimit), ErrRange)
	}
	c := b.cluster(block / clusterBlocks)
	c.mu.Lock()
	defer c.mu.Unlock()
	i := block % clusterBlocks
	buf, err := c.bytes(b, i)
	if err != nil || c.verified[i] == k {
		return buf, err
	}
	if err := verify(buf, block, salts[k]); err != nil {
		return nil, err
	}
	c.verified[i] = k
	return buf, nil
}

// raw returns the bytes of a block as they are. The error is ErrRange or the
// device's.
func (b *blocks) raw(block uint64) ([]byte, error) {
	if block >= blockLimit {
		return nil, ErrRange
	}
	c := b.cluster(block / clusterBlocks)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.bytes(b, block%clusterBlocks)
}

func (b *blocks) cluster(number uint64) *cluster {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.clusters[number]; ok {
		b.recent.MoveToFront(e)
		return e.Value.(*cluster)
	}
	for b.recent.Len() >= b.max {
		last := b.recent.Back()
		delete(b.clusters, b.recent.Remove(last).(*cluster).number)
	}
	c := &cluster{number: number}
	b.clusters[number] = b.recent.PushFront(c)
	return c
}

// bytes returns the i-th block of the cluster, as it was read.
func (c *cluster) bytes(b *blocks, i uint64) ([]byte, error) {
	if !c.read {
		c.readAll(b)
	}
	at := i * BlockSize
	buf := c.buf[at : at+BlockSize : at+BlockSize]
	if c.failed {
		return buf, c.readAlone(b.r, i, buf)
	}
	if at+BlockSize > uint64(c.have) {
		return nil, fmt.Errorf("beyond the end of the metadata: %w", ErrRange)
	}
	return buf, nil
}

func (c *cluster) readAll(b *blocks) {
	c.read, c.buf = true, b.memory.buffer()
	n, err := b.r.ReadAt(c.buf, int64(c.number*clusterBytes))
	c.have = n
	c.failed = n < clusterBytes && !errors.Is(err, io.EOF)
}

// readAlone keeps a bad block from taking its neighbours along.
func (c *cluster) readAlone(r io.ReaderAt, i uint64, buf []byte) error {
	if c.alone[i] {
		return c.errs[i]
	}
	c.alone[i] = true
	n, err := r.ReadAt(buf, int64(c.number*clusterBytes+i*BlockSize))
	switch {
	case n == BlockSize:
		return nil
	case errors.Is(err, io.EOF):
		err = fmt.Errorf("beyond the end of the metadata: %w", ErrRange)
	default:
		err = fmt.Errorf("read: %w", err)
	}
	if c.errs == nil {
		c.errs = map[uint64]error{}
	}
	c.errs[i] = err
	return err
}

// verify checks a block that is no superblock: its checksum and its number.
// All these blocks have the number in the same place.
func verify(b []byte, block uint64, salt uint32) error {
	le := binary.LittleEndian
	if want, have := checksum(b, salt), le.Uint32(b); want != have {
		return fmt.Errorf("checksum is %#x instead of %#x: %w", have, want, ErrChecksum)
	}
	if nr := le.Uint64(b[8:]); nr != block {
		return fmt.Errorf("block says that it is number %d: %w", nr, ErrChecksum)
	}
	return nil
}

// alignedBytes is memory that direct I/O takes.
func alignedBytes(size int) []byte {
	b := make([]byte, size+BlockSize-1)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (BlockSize - 1)
	return b[skip : skip+size : skip+size]
}
