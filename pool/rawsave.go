package pool

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
)

// What create is going to overwrite on two disks is kept in a file of the pool's folder until the pool is made: magic, then entries
// with a head of 32 bytes each, in little endian: kind, role, 6 zeros, offset, length, CRC-32C of the data, CRC-32C of the 28 bytes before.
const (
	saveMagic = "dmlayer save 01\n"
	saveHead  = 32
	saveUnit  = 4 << 10 // what is looked at for zeros
	savePiece = 1 << 20 // most data of an entry

	saveSector = 512 // what is compared
)

// The kinds of entries.
const (
	saveSize  = 's' // the device's size, as length
	saveBytes = 'b' // data follows
	saveZeros = 'z'
	savePlace = 'p' // data follows: where the disk is, for as long as nothing on it says whose it is
	saveEnd   = 'e' // offset is the number of entries before
)

// saveRoles are the letters of the roles.
var saveRoles = map[byte]string{'d': rawDataRole, 'm': rawMetaRole}

// saveEntry is one of the entries.
type saveEntry struct {
	kind byte
	role string
	fsutil.Range
	data []byte // of saveBytes and savePlace, until the next entry is read
}

// saving is a disk that create is going to write to.
type saving struct {
	role   string
	disk   io.ReaderAt
	size   int64
	ranges []fsutil.Range // that it overwrites, within the size, in rising order
	place  []byte         // what is kept of where the disk is; nil is nothing
}

// saveDisks writes the file, and has it durable when it returns.
func saveDisks(ctx context.Context, path string, disks []saving) (err error) {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.Close(), removeFiles(path+".new"))
		}
	}()
	buffered := bufio.NewWriterSize(f, 64<<10)
	w := saveWriter{w: buffered}
	w.bytes([]byte(saveMagic))
	for _, d := range disks {
		if err := w.disk(ctx, d); err != nil {
			return err
		}
	}
	w.entry(saveEnd, disks[0].role, fsutil.Range{Offset: int64(w.entries)}, nil)
	if err := errors.Join(w.err, buffered.Flush(), f.Sync()); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return fsutil.SyncDir(filepath.Dir(path))
}

// saveWriter writes entries and keeps the first error.
type saveWriter struct {
	w       io.Writer
	entries int
	err     error
}

func (w *saveWriter) bytes(b []byte) {
	if w.err == nil {
		_, w.err = w.w.Write(b)
	}
}

func (w *saveWriter) entry(kind byte, role string, r fsutil.Range, data []byte) {
	head := make([]byte, 0, saveHead)
	head = append(head, kind, role[0], 0, 0, 0, 0, 0, 0)
	head = binary.LittleEndian.AppendUint64(head, uint64(r.Offset))
	head = binary.LittleEndian.AppendUint64(head, uint64(r.Length))
	head = binary.LittleEndian.AppendUint32(head, crc32.Checksum(data, castagnoli))
	head = binary.LittleEndian.AppendUint32(head, crc32.Checksum(head, castagnoli))
	w.bytes(head)
	w.bytes(data)
	w.entries++
}

func (w *saveWriter) disk(ctx context.Context, d saving) error {
	w.entry(saveSize, d.role, fsutil.Range{Length: d.size}, nil)
	if d.place != nil {
		w.entry(savePlace, d.role, fsutil.Range{Length: int64(len(d.place))}, d.place)
	}
	buf := make([]byte, savePiece)
	for _, r := range d.ranges {
		for done := int64(0); done < r.Length; {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			piece := buf[:min(r.Length-done, savePiece)]
			if n, err := d.disk.ReadAt(piece, r.Offset+done); n < len(piece) {
				return fmt.Errorf("read what is to be overwritten at %d: %w", r.Offset+done, err)
			}
			w.piece(d.role, r.Offset+done, piece)
			done += int64(len(piece))
		}
	}
	return w.err
}

// piece writes runs of zeros and of what is not zero.
func (w *saveWriter) piece(role string, offset int64, b []byte) {
	for from := 0; from < len(b); {
		to, blank := from, isZero(b[from:min(from+saveUnit, len(b))])
		for to < len(b) && isZero(b[to:min(to+saveUnit, len(b))]) == blank {
			to = min(to+saveUnit, len(b))
		}
		r := fsutil.Range{Offset: offset + int64(from), Length: int64(to - from)}
		if blank {
			w.entry(saveZeros, role, r, nil)
		} else {
			w.entry(saveBytes, role, r, b[from:to])
		}
		from = to
	}
}

func isZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

// readSave gives fn each entry of a file. One that is not whole is ErrDamaged; fn may have been called by then.
func readSave(r io.Reader, fn func(saveEntry) error) error {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("what was saved of the devices: %s: %w", fmt.Sprintf(format, args...), errs.ErrDamaged)
	}
	magic := make([]byte, len(saveMagic))
	if _, err := io.ReadFull(r, magic); err != nil || string(magic) != saveMagic {
		return bad("not there")
	}
	head, buf := make([]byte, saveHead), make([]byte, savePiece)
	for n := uint64(0); ; n++ {
		if _, err := io.ReadFull(r, head); err != nil {
			return bad("entry %d: %v", n, err)
		}
		le := binary.LittleEndian
		if le.Uint32(head[28:]) != crc32.Checksum(head[:28], castagnoli) {
			return bad("entry %d: wrong checksum", n)
		}
		e := saveEntry{kind: head[0], role: saveRoles[head[1]], Range: fsutil.Range{Offset: int64(le.Uint64(head[8:])), Length: int64(le.Uint64(head[16:]))}}
		if e.role == "" || e.Offset < 0 || e.Length < 0 || e.End() < 0 {
			return bad("entry %d: out of range", n)
		}
		switch e.kind {
		case saveEnd:
			if uint64(e.Offset) != n {
				return bad("%d entries of %d", n, e.Offset)
			}
			return nil
		case saveSize, saveZeros:
		case saveBytes, savePlace:
			if e.Length > savePiece {
				return bad("entry %d: %d bytes", n, e.Length)
			}
			e.data = buf[:e.Length]
			if _, err := io.ReadFull(r, e.data); err != nil {
				return bad("entry %d: %v", n, err)
			}
			if le.Uint32(head[24:]) != crc32.Checksum(e.data, castagnoli) {
				return bad("entry %d: wrong checksum of the data", n)
			}
		default:
			return bad("entry %d: kind %q", n, e.kind)
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}

// formerDisk is what the file says about one of the disks.
type formerDisk struct {
	size  int64
	first []byte // its first sector
}

// readSaved reads the whole file, and returns what the disks were.
func readSaved(path string) (map[string]*formerDisk, error) {
	disks := map[string]*formerDisk{}
	err := eachSaved(path, func(e saveEntry) error {
		d := disks[e.role]
		if e.kind == saveSize {
			disks[e.role] = &formerDisk{size: e.Length, first: make([]byte, headerSector)}
			return nil
		}
		if e.kind == savePlace {
			return nil
		}
		if d == nil || e.End() > d.size {
			return fmt.Errorf("what was saved of the devices: %s at %d: %w", e.role, e.Offset, errs.ErrDamaged)
		}
		if e.kind == saveBytes && e.Offset < headerSector {
			copy(d.first[e.Offset:], e.data)
		}
		return nil
	})
	if err == nil && len(disks) != len(saveRoles) {
		err = fmt.Errorf("what was saved of the devices: %d of %d: %w", len(disks), len(saveRoles), errs.ErrDamaged)
	}
	return disks, err
}

func eachSaved(path string, fn func(saveEntry) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return readSave(bufio.NewReaderSize(f, 64<<10), fn)
}

// putBack writes what was saved of one disk, all but the sector at last, which tells whose the disk is, and returns that one. It is to be written
// with writeLast: as long as it is the pool's, the disk is found as one that is to be put back.
func putBack(ctx context.Context, path, role string, disk *os.File, last int64) (sector []byte, err error) {
	end := last + saveSector
	err = eachSaved(path, func(e saveEntry) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if e.role != role || e.kind == saveSize || e.kind == savePlace {
			return nil
		}
		if e.Offset > last || e.End() < end {
			return writeSaved(disk, e, e.Range)
		}
		sector = make([]byte, saveSector)
		if e.kind == saveBytes {
			copy(sector, e.data[last-e.Offset:])
		}
		err := writeSaved(disk, e, fsutil.Range{Offset: e.Offset, Length: last - e.Offset})
		if err == nil {
			err = writeSaved(disk, e, fsutil.Range{Offset: end, Length: e.End() - end})
		}
		return err
	})
	if err == nil && sector == nil {
		err = fmt.Errorf("what was saved of the devices: no sector at %d: %w", last, errs.ErrDamaged)
	}
	return sector, err
}

// writeSaved writes a part of an entry.
func writeSaved(disk *os.File, e saveEntry, part fsutil.Range) error {
	if part.Length == 0 {
		return nil
	}
	if e.kind == saveZeros {
		return fsutil.Zero(disk, part)
	}
	_, err := disk.WriteAt(e.data[part.Offset-e.Offset:part.End()-e.Offset], part.Offset)
	return err
}

// isSaved tells whether a disk has now what was saved of it in all places, as far as may has nothing to say about a sector that differs, and how
// many sectors are the same that are not zeros.
func isSaved(ctx context.Context, path, role string, disk io.ReaderAt, may func(offset int64, sector []byte) bool) (same bool, alike int, err error) {
	errOther := errors.New("another disk")
	now, zeros := make([]byte, savePiece), make([]byte, saveSector)
	err = eachSaved(path, func(e saveEntry) error {
		if e.role != role || e.kind != saveBytes && e.kind != saveZeros {
			return nil
		}
		for done := int64(0); done < e.Length; {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			piece := now[:min(e.Length-done, savePiece)]
			if _, err := disk.ReadAt(piece, e.Offset+done); err != nil {
				return err
			}
			for at := 0; at < len(piece); at += saveSector {
				sector := piece[at:min(at+saveSector, len(piece))]
				was := zeros[:len(sector)]
				if e.kind == saveBytes {
					was = e.data[done+int64(at):][:len(sector)]
				}
				switch {
				case !bytes.Equal(sector, was):
					if !may(e.Offset+done+int64(at), sector) {
						return errOther
					}
				case !isZero(sector):
					alike++
				}
			}
			done += int64(len(piece))
		}
		return nil
	})
	if errors.Is(err, errOther) {
		return false, 0, nil
	}
	return err == nil, alike, err
}

// writeFirst is writeLast for the first sector.
func writeFirst(disk *os.File, sector []byte) error { return writeLast(disk, sector, 0) }

// writeLast writes a sector once all that was written before is durable, and makes it durable.
func writeLast(disk *os.File, sector []byte, offset int64) error {
	if err := fsutil.Flush(disk); err != nil {
		return err
	}
	if _, err := disk.WriteAt(sector, offset); err != nil {
		return err
	}
	return fsutil.Flush(disk)
}
