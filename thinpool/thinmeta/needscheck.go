package thinmeta

import (
	"encoding/binary"
	"fmt"
)

// ClearNeedsCheck takes the kernel's mark away with which it writes no
// metadata. Nothing else is changed, and nothing looked at but the superblock:
// that is for [Metadata.Check], before. The pool must not be active. The errors
// are those of [ReadSuperblock], and what writing gave.
func ClearNeedsCheck(f Storage) error {
	s, err := ReadSuperblock(f)
	if err != nil || !s.NeedsCheck {
		return err
	}
	b := alignedBytes(BlockSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("thinmeta: read superblock: %w", err)
	}
	le := binary.LittleEndian
	le.PutUint32(b[4:], le.Uint32(b[4:])&^flagNeedsCheck)
	le.PutUint32(b, checksum(b, superblockSalt))
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("thinmeta: write superblock: %w", err)
	}
	return nil
}
