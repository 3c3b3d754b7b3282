package thinmeta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
)

// BlockSize is the size of a metadata block in bytes.
const BlockSize = 4096

var (
	// ErrBlank is returned for a device whose first block is all zero. The
	// kernel formats such a device when a pool on it is activated.
	ErrBlank = errors.New("metadata device is blank")
	// ErrNotThin is returned where there is something else than thin pool
	// metadata, or a version of it that this package cannot read.
	ErrNotThin = errors.New("no thin pool metadata")
	// ErrChecksum is returned for a block that has a wrong checksum or
	// belongs elsewhere.
	ErrChecksum = errors.New("damaged metadata block")
)

const (
	superblockMagic   = 27022010
	superblockSalt    = 160774
	superblockVersion = 2
	// The kernel writes the version but never looks at it; it refuses unknown
	// incompatible features instead.
	minVersion = 1

	flagNeedsCheck = 1 << 0
)

// Superblock is what a pool says about itself.
type Superblock struct {
	// Block is where the superblock lies: 0, or elsewhere in a metadata
	// snapshot.
	Block      uint64
	Flags      uint32
	NeedsCheck bool // the kernel writes no metadata before a check
	UUID       [16]byte
	Version    uint32
	// Time counts the snapshots that were ever made in the pool. It is cut
	// to 24 bits where it matters: beyond 2^24 the kernel mixes up blocks.
	Time          uint32
	TransactionID uint64
	HeldRoot      uint64 // block of the metadata snapshot's superblock, 0 for none
	// The two space maps count the blocks of the data and of the metadata
	// device. They are zero in a metadata snapshot.
	DataSpace, MetadataSpace SpaceMapRoot
	// MappingRoot and DetailsRoot are the blocks where the trees of mappings
	// and of devices begin.
	MappingRoot, DetailsRoot uint64
	DataBlockSize            uint32 // in sectors of 512 bytes
	MetadataBlockSize        uint32 // in sectors of 512 bytes: 8
	// MetadataBlocksAtFormat does not follow when the metadata device grows;
	// MetadataSpace.Blocks does.
	MetadataBlocksAtFormat           uint64
	Compat, CompatReadOnly, Incompat uint32
}

// SpaceMapRoot is the head of a space map.
type SpaceMapRoot struct {
	Blocks       uint64 // how many there are
	Allocated    uint64 // how many are in use
	BitmapRoot   uint64
	RefCountRoot uint64
}

// ReadSuperblock reads the superblock of a pool that is not active, at block 0.
//
// The error is [ErrBlank], [ErrNotThin], [ErrChecksum], or what reading gave;
// a device of less than a block is [ErrNotThin].
func ReadSuperblock(r io.ReaderAt) (Superblock, error) { return ReadSuperblockAt(r, 0) }

// ReadSuperblockAt reads the superblock of a metadata snapshot, which begins
// at the block that the status of the pool names. Read a device that is in use
// with O_DIRECT: the page cache does not know what the kernel writes.
func ReadSuperblockAt(r io.ReaderAt, block uint64) (Superblock, error) {
	if block > (1<<63-1)/BlockSize-1 {
		return Superblock{}, fmt.Errorf("thinmeta: superblock at block %d: out of range: %w", block, ErrNotThin)
	}
	b := alignedBytes(BlockSize)
	if n, err := r.ReadAt(b, int64(block*BlockSize)); n < BlockSize {
		if errors.Is(err, io.EOF) {
			return Superblock{}, fmt.Errorf("thinmeta: superblock at block %d: device has only %d bytes of it: %w", block, n, ErrNotThin)
		}
		return Superblock{}, fmt.Errorf("thinmeta: read superblock at block %d: %w", block, err)
	}
	return parseSuperblockAt(b, block)
}

func parseSuperblockAt(b []byte, block uint64) (Superblock, error) {
	s, err := ParseSuperblock(b, block)
	if err != nil {
		return Superblock{}, fmt.Errorf("thinmeta: superblock at block %d: %w", block, err)
	}
	return s, nil
}

// ParseSuperblock reads the [BlockSize] bytes of a superblock and checks them:
// blank, magic, checksum, its own number, version, and whether it needs
// features that this package does not know.
func ParseSuperblock(b []byte, block uint64) (Superblock, error) {
	if len(b) != BlockSize {
		return Superblock{}, fmt.Errorf("%d bytes instead of %d: %w", len(b), BlockSize, ErrNotThin)
	}
	if isZero(b) {
		return Superblock{}, ErrBlank
	}
	le := binary.LittleEndian
	if magic := le.Uint64(b[32:]); magic != superblockMagic {
		return Superblock{}, fmt.Errorf("magic number is %d instead of %d: %w", magic, superblockMagic, ErrNotThin)
	}
	if want, have := checksum(b, superblockSalt), le.Uint32(b); want != have {
		return Superblock{}, fmt.Errorf("checksum is %#x instead of %#x: %w", have, want, ErrChecksum)
	}
	if nr := le.Uint64(b[8:]); nr != block {
		return Superblock{}, fmt.Errorf("block says that it is number %d: %w", nr, ErrChecksum)
	}
	s := Superblock{
		Block:                  block,
		Flags:                  le.Uint32(b[4:]),
		NeedsCheck:             le.Uint32(b[4:])&flagNeedsCheck != 0,
		UUID:                   [16]byte(b[16:32]),
		Version:                le.Uint32(b[40:]),
		Time:                   le.Uint32(b[44:]),
		TransactionID:          le.Uint64(b[48:]),
		HeldRoot:               le.Uint64(b[56:]),
		DataSpace:              parseSpaceMapRoot(b[64:192]),
		MetadataSpace:          parseSpaceMapRoot(b[192:320]),
		MappingRoot:            le.Uint64(b[320:]),
		DetailsRoot:            le.Uint64(b[328:]),
		DataBlockSize:          le.Uint32(b[336:]),
		MetadataBlockSize:      le.Uint32(b[340:]),
		MetadataBlocksAtFormat: le.Uint64(b[344:]),
		Compat:                 le.Uint32(b[352:]),
		CompatReadOnly:         le.Uint32(b[356:]),
		Incompat:               le.Uint32(b[360:]),
	}
	if err := s.check(); err != nil {
		return Superblock{}, err
	}
	return s, nil
}

func (s Superblock) check() error {
	switch {
	case s.Version < minVersion || s.Version > superblockVersion:
		return fmt.Errorf("version %d is not supported: %w", s.Version, ErrNotThin)
	case s.Incompat != 0:
		return fmt.Errorf("unknown incompatible features %#x: %w", s.Incompat, ErrNotThin)
	case s.MetadataBlockSize != BlockSize/512:
		return fmt.Errorf("metadata blocks of %d sectors: %w", s.MetadataBlockSize, ErrNotThin)
	case s.DataBlockSize == 0:
		return fmt.Errorf("data blocks of no sectors: %w", ErrNotThin)
	}
	return nil
}

func parseSpaceMapRoot(b []byte) SpaceMapRoot {
	le := binary.LittleEndian
	return SpaceMapRoot{le.Uint64(b), le.Uint64(b[8:]), le.Uint64(b[16:]), le.Uint64(b[24:])}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// checksum is the kernel's: crc32c without the final inversion of everything
// behind the checksum itself, mixed with a salt for the kind of block.
func checksum(b []byte, salt uint32) uint32 {
	return ^crc32.Checksum(b[4:BlockSize], castagnoli) ^ salt
}

func isZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
