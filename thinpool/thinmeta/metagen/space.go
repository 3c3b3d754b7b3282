package metagen

import (
	"maps"
	"slices"
)

// space is the root of a space map.
type space struct{ blocks, allocated, bitmaps, counts uint64 }

func (s space) bytes() []byte {
	return slices.Concat(u64(s.blocks), u64(s.allocated), u64(s.bitmaps), u64(s.counts))
}

// bitmapSet are the bitmaps of a space.
type bitmapSet struct {
	blocks []uint64
	bytes  [][]byte
	free   []uint32
	first  []uint32 // free one
}

// fill writes references into bitmaps.
func (s *bitmapSet) fill(total uint64, references map[uint64]uint32) {
	for i := range s.blocks {
		b := make([]byte, blockSize)
		entries := min(perBitmap, total-uint64(i)*perBitmap)
		s.first = append(s.first, uint32(entries))
		var free uint32
		for j := entries; j > 0; j-- {
			n := min(references[uint64(i)*perBitmap+j-1], 3)
			if n == 0 {
				free++
				s.first[i] = uint32(j - 1)
			}
			setPair(b, j-1, n)
		}
		s.bytes, s.free = append(s.bytes, b), append(s.free, free)
	}
}

// setPair writes two bits, the higher one first.
func setPair(b []byte, i uint64, n uint32) {
	raw := byte(n>>1 | n&1<<1)
	at := &b[mapHeader+i/4]
	*at = *at&^(3<<(i%4*2)) | raw<<(i%4*2)
}

// entry is what the index says of the i-th bitmap.
func (s *bitmapSet) entry(i int) []byte {
	b := u64(s.blocks[i])
	b = le.AppendUint32(b, s.free[i])
	return le.AppendUint32(b, s.first[i])
}

func (w *writer) bitmaps(name string, total uint64) *bitmapSet {
	s := &bitmapSet{}
	for range (total + perBitmap - 1) / perBitmap {
		block := w.take(Info{Kind: Bitmap, Tree: name})
		w.refer(block)
		s.blocks = append(s.blocks, block)
	}
	return s
}

func (w *writer) writeBitmaps(s *bitmapSet) {
	for i, block := range s.blocks {
		copy(w.image.Block(block), s.bytes[i])
		w.image.Seal(block)
	}
}

// many are the counts that bitmaps have no room for.
func many(references map[uint64]uint32) []record {
	var records []record
	for _, block := range slices.Sorted(maps.Keys(references)) {
		if n := references[block]; n > 2 {
			records = append(records, record{block, le.AppendUint32(nil, n)})
		}
	}
	return records
}

func (w *writer) dataSpace() space {
	s := space{blocks: w.pool.DataBlocks, allocated: uint64(len(w.data))}
	bitmaps := w.bitmaps("data bitmaps", s.blocks)
	bitmaps.fill(s.blocks, w.data)
	w.writeBitmaps(bitmaps)
	var index []record
	for i := range bitmaps.blocks {
		index = append(index, record{uint64(i), bitmaps.entry(i)})
	}
	s.bitmaps = w.tree("data bitmaps", 16, index, nil)
	s.counts = w.tree("data counts", 4, many(w.data), nil)
	w.refer(s.bitmaps)
	w.refer(s.counts)
	return s
}

// metadataSpace counts all blocks, its own as well; so those come first.
func (w *writer) metadataSpace() space {
	s := space{blocks: w.pool.MetadataBlocks}
	bitmaps := w.bitmaps("metadata bitmaps", s.blocks)
	s.bitmaps = w.take(Info{Kind: Index, Tree: "metadata bitmaps", Root: true})
	s.counts = w.tree("metadata counts", 4, many(w.references()), nil)
	w.refer(s.bitmaps)
	w.refer(s.counts)
	bitmaps.fill(s.blocks, w.references())
	w.writeBitmaps(bitmaps)
	b := w.image.Block(s.bitmaps)
	for i := range bitmaps.blocks {
		copy(b[mapHeader+16*i:], bitmaps.entry(i))
	}
	w.image.Seal(s.bitmaps)
	s.allocated = uint64(len(w.image.Blocks))
	return s
}

func (w *writer) references() map[uint64]uint32 {
	all := map[uint64]uint32{}
	for block, info := range w.image.Blocks {
		all[block] = info.References
	}
	return all
}

// superblock is what begins a generation.
type superblock struct {
	pool *Pool
	generation
	held              uint64
	data, metadata    space
	mappings, details uint64
}

func (s superblock) bytes() []byte {
	b := make([]byte, blockSize)
	if s.pool.NeedsCheck {
		le.PutUint32(b[4:], 1)
	}
	le.PutUint64(b[32:], 27022010)
	le.PutUint32(b[40:], 2)
	le.PutUint32(b[44:], s.time)
	le.PutUint64(b[48:], s.transactionID)
	le.PutUint64(b[56:], s.held)
	copy(b[64:], s.data.bytes())
	copy(b[192:], s.metadata.bytes())
	le.PutUint64(b[320:], s.mappings)
	le.PutUint64(b[328:], s.details)
	le.PutUint32(b[336:], s.pool.BlockSize)
	le.PutUint32(b[340:], blockSize/512)
	le.PutUint64(b[344:], s.pool.MetadataBlocks)
	return b
}
