package thinpool

import "github.com/dmlayer/dmlayer/devmapper"

// MaxMetadataSize is the size in bytes beyond which the kernel does not use a
// metadata device: 255 bitmaps of 16320 blocks of 4 KiB (dm-thin-metadata.h,
// THIN_METADATA_MAX_SECTORS).
const MaxMetadataSize uint64 = 255 * 16320 * MetadataBlockSize

const (
	bytesPerMapping  = 48      // the kernel's own estimate (thin-provisioning.rst)
	metadataPerPool  = 4 << 20 // for the leaves that 700 or so empty devices take
	metadataRounding = 1 << 20
)

// MetadataSize is the size in bytes to give the metadata device of a pool with
// that much data: the kernel's estimate of 48 bytes for each block, twice, as
// a snapshot copies what is rewritten after it, and 4 MiB, as every device has
// blocks of its own. It is a multiple of 1 MiB (but for the maximum) of at
// least 4 MiB and at most [MaxMetadataSize]. The kernel keeps up to a tenth of
// it, at most 16 MiB, for itself.
func MetadataSize(dataBytes uint64, blockSize devmapper.Sectors) uint64 {
	blocks := dataBytes / max(blockSize, MinBlockSize).Bytes()
	// Compared before multiplying, which could wrap around.
	if blocks > MaxMetadataSize/(2*bytesPerMapping) {
		return MaxMetadataSize
	}
	size := metadataPerPool + 2*bytesPerMapping*blocks
	size = (size + metadataRounding - 1) / metadataRounding * metadataRounding
	return min(size, MaxMetadataSize)
}
