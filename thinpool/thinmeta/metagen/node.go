package metagen

import (
	"encoding/binary"
	"hash/crc32"
)

// The format, written down once more and not taken from the reader.
const (
	blockSize   = 4096
	nodeHeader  = 32
	mapHeader   = 16 // of bitmaps and of the index
	perBitmap   = (blockSize - mapHeader) * 4
	maxMappings = 252 // in a leaf
	maxChildren = 252
)

// Kind is what a block is, which decides about its checksum.
type Kind uint8

// The kinds.
const (
	Superblock Kind = iota
	Node
	Bitmap
	Index
)

var salts = [...]uint32{Superblock: 160774, Node: 121107, Bitmap: 240779, Index: 160478}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var le = binary.LittleEndian

// seal writes a block's number and checksum.
func seal(b []byte, block uint64, k Kind) {
	le.PutUint64(b[8:], block)
	sealChecksum(b, k)
}

func sealChecksum(b []byte, k Kind) {
	le.PutUint32(b, ^crc32.Checksum(b[4:blockSize], castagnoli)^salts[k])
}

// record is a key and a value.
type record struct {
	key   uint64
	value []byte
}

func u64(n uint64) []byte { return le.AppendUint64(nil, n) }

// maxRecords is how many fit into a node.
func maxRecords(valueSize int) int {
	n := (blockSize - nodeHeader) / (8 + valueSize)
	return n - n%3
}

// nodeBytes is a node without number and checksum.
func nodeBytes(leaf bool, valueSize int, records []record) []byte {
	b := make([]byte, blockSize)
	le.PutUint32(b[4:], 1)
	if leaf {
		le.PutUint32(b[4:], 2)
	}
	most := maxRecords(valueSize)
	le.PutUint32(b[16:], uint32(len(records)))
	le.PutUint32(b[20:], uint32(most))
	le.PutUint32(b[24:], uint32(valueSize))
	for i, r := range records {
		le.PutUint64(b[nodeHeader+8*i:], r.key)
		copy(b[nodeHeader+8*most+valueSize*i:], r.value)
	}
	return b
}
