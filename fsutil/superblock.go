package fsutil

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// FS is what the superblock of a file system says.
type FS struct {
	Type      Type
	UUID      string
	Label     string
	BlockSize uint32
	Size      uint64 // bytes, of the whole file system
	// NeedsRecovery says that a journal has to be replayed. Only ext4 says so in its superblock; of xfs it is
	// always true, for it may.
	NeedsRecovery bool
	// HasErrors says that ext4 recorded an error that no check has cleared.
	HasErrors bool
}

// ReadFS reads the superblock of an ext4 or xfs file system. Anything else is errs.ErrNotFound, what claims to
// be one and cannot be is errs.ErrDamaged. It reads through the page cache of a block device, which a mounted
// ext4 shares; what xfs says while it is mounted may be old.
func ReadFS(r io.ReaderAt) (FS, error) {
	var sb [2048]byte
	if err := readFull(r, sb[:], 0); err != nil {
		if errors.Is(err, io.EOF) {
			return FS{}, fmt.Errorf("read superblock: %w", errShort)
		}
		return FS{}, fmt.Errorf("read superblock: %w", err)
	}
	switch {
	case string(sb[:4]) == "XFSB":
		return parseXFS(sb[:])
	case binary.LittleEndian.Uint16(sb[1024+0x38:]) == ext4Magic:
		return parseExt4(sb[1024:])
	}
	return FS{}, fmt.Errorf("read superblock: neither ext4 nor xfs: %w", errs.ErrNotFound)
}

// ReadFSOf is ReadFS for the device or file at path.
func ReadFSOf(path string) (FS, error) {
	f, err := OpenReadable(path)
	if err != nil {
		return FS{}, err
	}
	defer f.Close()
	fs, err := ReadFS(f)
	if err != nil {
		return FS{}, fmt.Errorf("%s: %w", path, err)
	}
	return fs, nil
}

// NeedsRecovery says whether a mount would replay a journal; of xfs, whether it might: always true.
func NeedsRecovery(path string, t Type) (bool, error) {
	fs, err := ReadFSOf(path)
	if err != nil {
		return false, err
	}
	if fs.Type != t {
		return false, fmt.Errorf("%s: is %s, not %s: %w", path, fs.Type, t, errs.ErrDamaged)
	}
	return fs.NeedsRecovery, nil
}

// From fs/ext4/ext4.h and Documentation/filesystems/ext4/super.rst.
const (
	ext4Magic               = 0xef53
	ext4StateErrors         = 2
	ext4CompatJournal       = 0x4
	ext4IncompatRecover     = 0x4
	ext4IncompatJournalDev  = 0x8
	ext4IncompatExtents     = 0x40
	ext4Incompat64Bit       = 0x80
	ext4MaxLogBlockSize     = 6 // 64 KiB
	xfsMinBlock, xfsMaxBlok = 512, 64 << 10
)

func parseExt4(sb []byte) (FS, error) {
	le := binary.LittleEndian
	logSize := le.Uint32(sb[0x18:])
	if logSize > ext4MaxLogBlockSize {
		return FS{}, fmt.Errorf("ext4 superblock: block size 2^%d KiB: %w", logSize, errs.ErrDamaged)
	}
	incompat := le.Uint32(sb[0x60:])
	if incompat&ext4IncompatJournalDev != 0 {
		return FS{}, fmt.Errorf("ext4 superblock: an external journal: %w", errs.ErrNotFound)
	}
	blocks := uint64(le.Uint32(sb[0x4:]))
	if incompat&ext4Incompat64Bit != 0 {
		blocks |= uint64(le.Uint32(sb[0x150:])) << 32
	}
	fs := FS{
		Type:          Ext4,
		UUID:          formatUUID(sb[0x68:0x78]),
		Label:         cString(sb[0x78:0x88]),
		BlockSize:     1024 << logSize,
		NeedsRecovery: incompat&ext4IncompatRecover != 0,
		HasErrors:     le.Uint16(sb[0x3a:])&ext4StateErrors != 0,
	}
	var err error
	fs.Size, err = fsSize("ext4", blocks, fs.BlockSize)
	return fs, err
}

// parseXFS reads the start of struct xfs_dsb (fs/xfs/libxfs/xfs_format.h); all of it is big-endian.
func parseXFS(sb []byte) (FS, error) {
	be := binary.BigEndian
	size := be.Uint32(sb[4:])
	if size < xfsMinBlock || size > xfsMaxBlok || size&(size-1) != 0 {
		return FS{}, fmt.Errorf("xfs superblock: block size %d: %w", size, errs.ErrDamaged)
	}
	fs := FS{
		Type:          XFS,
		UUID:          formatUUID(sb[32:48]),
		Label:         cString(sb[108:120]),
		BlockSize:     size,
		NeedsRecovery: true,
	}
	var err error
	fs.Size, err = fsSize("xfs", be.Uint64(sb[8:]), size)
	return fs, err
}

func fsSize(what string, blocks uint64, blockSize uint32) (uint64, error) {
	size := blocks * uint64(blockSize)
	if blocks == 0 || size/uint64(blockSize) != blocks {
		return 0, fmt.Errorf("%s superblock: %d blocks of %d bytes: %w", what, blocks, blockSize, errs.ErrDamaged)
	}
	return size, nil
}

func formatUUID(b []byte) string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// cString returns what is before the first NUL, without bytes that a terminal would obey.
func cString(b []byte) string {
	s, _, _ := strings.Cut(string(b), "\x00")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}
