package pool

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// Behind the label there are two places for a copy of the records, which are written in turn: the older one, always, so
// that a power cut leaves the other. A place begins with a block: magic, sequence number (u64, little
// endian), length (u64), CRC-32C of the copy (u32), CRC-32C of all that (u32). The copy follows it.
const (
	slotMagic  = "dmlayer copy 01\n"
	slotHeader = 4096
	slotSum    = len(slotMagic) + 8 + 8 + 4
)

// slotOffsets leave room for the largest copy that is read.
var slotOffsets = [2]int64{256 << 20, 640 << 20}

// slot is a copy that was found whole.
type slot struct {
	index    int
	sequence uint64
	text     []byte
}

// writeSlot puts a copy into the place of the older one. It is durable once the device has been flushed.
func writeSlot(f interface {
	io.ReaderAt
	io.WriterAt
}, text []byte) error {
	if len(text) > metadata.MaxCopySize {
		return fmt.Errorf("copy of the records: %d bytes: %w", len(text), errs.ErrNoSpace)
	}
	next := slot{sequence: 1}
	// One that cannot be read is as good as none.
	if whole, _ := readSlots(f); len(whole) > 0 {
		next = slot{index: 1 - whole[0].index, sequence: whole[0].sequence + 1}
	}
	at := slotOffsets[next.index]
	if _, err := f.WriteAt(text, at+slotHeader); err != nil {
		return fmt.Errorf("write copy of the records: %w", err)
	}
	if _, err := f.WriteAt(encodeSlotHeader(next.sequence, text), at); err != nil {
		return fmt.Errorf("write copy of the records: %w", err)
	}
	return nil
}

func encodeSlotHeader(sequence uint64, text []byte) []byte {
	b := append(make([]byte, 0, slotHeader), slotMagic...)
	b = binary.LittleEndian.AppendUint64(b, sequence)
	b = binary.LittleEndian.AppendUint64(b, uint64(len(text)))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(text, castagnoli))
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	return b[:slotHeader]
}

// readSlots returns the copies that are whole, the newest first, and what is wrong with the others.
func readSlots(r io.ReaderAt) ([]slot, error) {
	var whole []slot
	var all error
	for i := range slotOffsets {
		s, err := readSlot(r, i)
		switch {
		case err != nil:
			all = errors.Join(all, fmt.Errorf("copy %d in the label: %w", i+1, err))
		case len(whole) > 0 && s.sequence > whole[0].sequence:
			whole = []slot{s, whole[0]}
		default:
			whole = append(whole, s)
		}
	}
	return whole, all
}

func readSlot(r io.ReaderAt, index int) (slot, error) {
	b := make([]byte, slotSum+4)
	if _, err := r.ReadAt(b, slotOffsets[index]); err != nil {
		return slot{}, err
	}
	if string(b[:len(slotMagic)]) != slotMagic {
		return slot{}, fmt.Errorf("not there: %w", errs.ErrNotFound)
	}
	if binary.LittleEndian.Uint32(b[slotSum:]) != crc32.Checksum(b[:slotSum], castagnoli) {
		return slot{}, fmt.Errorf("its head has a wrong checksum: %w", errs.ErrDamaged)
	}
	b = b[len(slotMagic):]
	s := slot{index: index, sequence: binary.LittleEndian.Uint64(b)}
	length := binary.LittleEndian.Uint64(b[8:])
	if length > metadata.MaxCopySize {
		return slot{}, fmt.Errorf("too long: %w", errs.ErrDamaged)
	}
	s.text = make([]byte, length)
	if _, err := r.ReadAt(s.text, slotOffsets[index]+slotHeader); err != nil {
		return slot{}, err
	}
	if binary.LittleEndian.Uint32(b[16:]) != crc32.Checksum(s.text, castagnoli) {
		return slot{}, fmt.Errorf("wrong checksum: %w", errs.ErrDamaged)
	}
	return s, nil
}
