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
	return editSuperblock(f, func(b []byte) {
		le := binary.LittleEndian
		le.PutUint32(b[4:], le.Uint32(b[4:])&^flagNeedsCheck)
	})
}

// SetUUID gives metadata a UUID by which it is known again: the kernel neither
// looks at it nor changes it. The pool must not be active. The errors are those
// of [ReadSuperblock], and what writing gave.
func SetUUID(f Storage, uuid [16]byte) error {
	if _, err := ReadSuperblock(f); err != nil {
		return err
	}
	return editSuperblock(f, func(b []byte) { copy(b[16:32], uuid[:]) })
}

func editSuperblock(f Storage, edit func(b []byte)) error {
	b := alignedBytes(BlockSize)
	if _, err := f.ReadAt(b, 0); err != nil {
		return fmt.Errorf("thinmeta: read superblock: %w", err)
	}
	edit(b)
	binary.LittleEndian.PutUint32(b, checksum(b, superblockSalt))
	if _, err := f.WriteAt(b, 0); err != nil {
		return fmt.Errorf("thinmeta: write superblock: %w", err)
	}
	return nil
}
