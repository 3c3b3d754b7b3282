package fsutil

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// extWithJournal is the part of an ext4 of 64 blocks of 4 KiB that leads to its journal, in block 20, which was aborted with an error.
func extWithJournal() []byte {
	const block = 4096
	b := make([]byte, 64*block)
	le, be := binary.LittleEndian, binary.BigEndian
	sb := b[1024:]
	le.PutUint32(sb[0x4:], 64)
	le.PutUint32(sb[0x18:], 2)
	le.PutUint16(sb[0x38:], ext4Magic)
	le.PutUint32(sb[0x4c:], 1)
	le.PutUint16(sb[0x58:], 256)
	le.PutUint32(sb[0x5c:], ext4CompatJournal)
	le.PutUint32(sb[0xe0:], ext4JournalInode)
	le.PutUint32(b[block+8:], 10) // the inode table
	inode := b[10*block+7*256:]
	le.PutUint32(inode[0x20:], ext4ExtentsFlag)
	putExtents(inode[0x28:], 0, 20)
	be.PutUint32(b[20*block:], jbd2Magic)
	be.PutUint32(b[20*block+0x20:], 5)
	return b
}

// putExtents writes a node of an extent tree with one entry.
func putExtents(b []byte, depth uint16, to uint32) {
	le := binary.LittleEndian
	clear(b[:24])
	le.PutUint16(b, ext4ExtentMagic)
	le.PutUint16(b[2:], 1)
	le.PutUint16(b[6:], depth)
	at := 12 + 8
	if depth > 0 {
		at = 12 + 4
	}
	le.PutUint32(b[at:], to)
}

func TestJournalError(t *testing.T) {
	le := binary.LittleEndian
	const block, inode = 4096, 10*4096 + 7*256
	for name, c := range map[string]struct {
		change func(b []byte)
		code   uint32
		err    error
	}{
		"aborted":     {func([]byte) {}, 5, nil},
		"well":        {func(b []byte) { clear(b[20*block+0x20 : 20*block+0x24]) }, 0, nil},
		"no journal":  {func(b []byte) { clear(b[1024+0x5c : 1024+0x60]) }, 0, nil},
		"mapped":      {func(b []byte) { clear(b[inode+0x20 : inode+0x64]); le.PutUint32(b[inode+0x28:], 20) }, 5, nil},
		"deep":        {func(b []byte) { putExtents(b[inode+0x28:], 1, 30); putExtents(b[30*block:], 0, 20) }, 5, nil},
		"circle":      {func(b []byte) { putExtents(b[inode+0x28:], 1, 30); putExtents(b[30*block:], 1, 30) }, 0, errs.ErrDamaged},
		"old inodes":  {func(b []byte) { clear(b[1024+0x4c : 1024+0x50]); copy(b[10*block+7*128:], b[inode:inode+128]) }, 5, nil},
		"elsewhere":   {func(b []byte) { putExtents(b[inode+0x28:], 0, 64) }, 0, errs.ErrDamaged},
		"no extents":  {func(b []byte) { clear(b[inode+0x28 : inode+0x64]) }, 0, errs.ErrDamaged},
		"not one":     {func(b []byte) { putExtents(b[inode+0x28:], 0, 21) }, 0, errs.ErrDamaged},
		"no table":    {func(b []byte) { le.PutUint32(b[block+8:], 1<<31) }, 0, errs.ErrDamaged},
		"other inode": {func(b []byte) { le.PutUint32(b[1024+0xe0:], 9) }, 0, errs.ErrUnsupported},
	} {
		b := extWithJournal()
		c.change(b)
		code, err := journalError(bytes.NewReader(b))
		if code != c.code || !errors.Is(err, c.err) {
			t.Errorf("%s: %d, %v", name, code, err)
		}
	}
	b := extWithJournal()
	for size := range 21 { // cut off anywhere
		if _, err := journalError(bytes.NewReader(b[:size*block])); !errors.Is(err, io.EOF) {
			t.Errorf("%d blocks: %v", size, err)
		}
	}
}
