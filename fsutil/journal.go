package fsutil

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// From fs/ext4/ext4.h, fs/ext4/ext4_extents.h, include/linux/jbd2.h.
const (
	ext4JournalInode    = 8
	ext4OldInodeSize    = 128
	ext4ExtentsFlag     = 0x80000
	ext4ExtentMagic     = 0xf30a
	ext4ExtentDepth     = 5 // at most
	ext4SmallDescriptor = 32
	jbd2Magic           = 0xc03b3998
)

// journalError returns the error with which the journal of an ext4 was aborted, 0 for none. The kernel notes it in the journal's own
// superblock, in the page cache that it shares with readers of the device, before anything else can see that it has: the file system
// learns of it only when it begins its next transaction. One without a journal has none to abort.
func journalError(r io.ReaderAt) (uint32, error) {
	code, err := readJournalError(r)
	if err != nil {
		err = fmt.Errorf("read journal: %w", err)
	}
	return code, err
}

func readJournalError(r io.ReaderAt) (uint32, error) {
	var sb [1024]byte
	if err := readFull(r, sb[:], 1024); err != nil {
		return 0, err
	}
	le := binary.LittleEndian
	if le.Uint32(sb[0x5c:])&ext4CompatJournal == 0 {
		return 0, nil
	}
	fs, err := parseExt4(sb[:])
	if err != nil {
		return 0, err
	}
	inode, err := readJournalInode(r, sb[:], fs)
	if err != nil {
		return 0, err
	}
	first, err := firstBlock(r, inode, fs)
	if err != nil {
		return 0, err
	}
	var journal [0x24]byte
	if err := readBlock(r, fs, first, 0, journal[:]); err != nil {
		return 0, err
	}
	be := binary.BigEndian
	if be.Uint32(journal[:]) != jbd2Magic {
		return 0, fmt.Errorf("block %d has no superblock of a journal: %w", first, errs.ErrDamaged)
	}
	return be.Uint32(journal[0x20:]), nil
}

// readJournalInode returns the inode of the journal, of the size that all have had.
func readJournalInode(r io.ReaderAt, sb []byte, fs FS) ([]byte, error) {
	le := binary.LittleEndian
	if le.Uint32(sb[0xe0:]) != ext4JournalInode {
		return nil, fmt.Errorf("it is inode %d: %w", le.Uint32(sb[0xe0:]), errs.ErrUnsupported)
	}
	size := int64(ext4OldInodeSize)
	if le.Uint32(sb[0x4c:]) > 0 {
		size = int64(le.Uint16(sb[0x58:]))
	}
	var group [64]byte
	if err := readBlock(r, fs, uint64(le.Uint32(sb[0x14:]))+1, 0, group[:]); err != nil {
		return nil, err
	}
	table := uint64(le.Uint32(group[8:]))
	if le.Uint32(sb[0x60:])&ext4Incompat64Bit != 0 && le.Uint16(sb[0xfe:]) > ext4SmallDescriptor {
		table |= uint64(le.Uint32(group[0x28:])) << 32
	}
	inode := make([]byte, ext4OldInodeSize)
	err := readBlock(r, fs, table, (ext4JournalInode-1)*size, inode)
	return inode, err
}

// firstBlock returns where a file begins.
func firstBlock(r io.ReaderAt, inode []byte, fs FS) (uint64, error) {
	le := binary.LittleEndian
	node := inode[0x28:0x64]
	if le.Uint32(inode[0x20:])&ext4ExtentsFlag == 0 {
		return uint64(le.Uint32(node)), nil
	}
	for range ext4ExtentDepth + 1 {
		if le.Uint16(node) != ext4ExtentMagic || le.Uint16(node[2:]) == 0 {
			return 0, fmt.Errorf("extents of inode %d: %w", ext4JournalInode, errs.ErrDamaged)
		}
		entry := node[12:]
		if le.Uint16(node[6:]) == 0 {
			return uint64(le.Uint16(entry[6:]))<<32 | uint64(le.Uint32(entry[8:])), nil
		}
		child := uint64(le.Uint16(entry[8:]))<<32 | uint64(le.Uint32(entry[4:]))
		node = make([]byte, 24)
		if err := readBlock(r, fs, child, 0, node); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("extents of inode %d: too deep: %w", ext4JournalInode, errs.ErrDamaged)
}

// readBlock reads from a block on, which a damaged file system may say is anywhere.
func readBlock(r io.ReaderAt, fs FS, block uint64, off int64, buf []byte) error {
	if block >= fs.Size/uint64(fs.BlockSize) {
		return fmt.Errorf("block %d of %d: %w", block, fs.Size/uint64(fs.BlockSize), errs.ErrDamaged)
	}
	return readFull(r, buf, int64(block)*int64(fs.BlockSize)+off)
}
