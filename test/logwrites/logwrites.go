// Package logwrites reads what the device-mapper target log-writes has recorded and plays it again up to
// any instant, so that a test sees a disk as a power cut would have left it.
//
// The target (drivers/md/dm-log-writes.c, Documentation/admin-guide/device-mapper/log-writes.rst) logs a
// write only once it has completed and a flush after it was asked for, or if it was written through. A
// prefix of the log is thus a state in which nothing survived but what had to.
package logwrites

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// Flags of an entry.
const (
	Flush   = 1 << 0
	FUA     = 1 << 1
	Discard = 1 << 2
	Mark    = 1 << 3
)

const (
	magic      = 0x6a736677736872
	version    = 1
	superBytes = 28
	entryBytes = 32

	// An entry of more than this is damage.
	maxSectors = 1 << 24
)

// ErrFormat says that something is not a log.
var ErrFormat = errors.New("logwrites: not a log")

// Entry is one logged request.
type Entry struct {
	Sector  uint64 // in units of the log's sector size
	Sectors uint64
	Flags   uint64
	Mark    string // of an entry with the flag Mark
	data    int64  // where its data lies in the log
}

// Log is an opened log.
type Log struct {
	r       io.ReaderAt
	sector  int64
	Entries []Entry
}

// Read reads all entries of a log, not their data.
func Read(r io.ReaderAt) (*Log, error) {
	var super [superBytes]byte
	if _, err := r.ReadAt(super[:], 0); err != nil {
		return nil, fmt.Errorf("read super block: %w", err)
	}
	le := binary.LittleEndian
	if le.Uint64(super[:]) != magic || le.Uint64(super[8:]) != version {
		return nil, fmt.Errorf("magic number %#x, version %d: %w", le.Uint64(super[:]), le.Uint64(super[8:]), ErrFormat)
	}
	n := le.Uint64(super[16:])
	l := &Log{r: r, sector: int64(le.Uint32(super[24:]))}
	if l.sector != 512 && l.sector != 4096 {
		return nil, fmt.Errorf("sectors of %d bytes: %w", l.sector, ErrFormat)
	}
	at := l.sector
	for i := range n {
		e, next, err := l.entry(at)
		if err != nil {
			return nil, fmt.Errorf("entry %d of %d: %w", i, n, err)
		}
		l.Entries = append(l.Entries, e)
		at = next
	}
	return l, nil
}

func (l *Log) entry(at int64) (Entry, int64, error) {
	b := make([]byte, l.sector)
	if _, err := l.r.ReadAt(b, at); err != nil {
		return Entry{}, 0, err
	}
	le := binary.LittleEndian
	e := Entry{Sector: le.Uint64(b), Sectors: le.Uint64(b[8:]), Flags: le.Uint64(b[16:]), data: at + l.sector}
	size := le.Uint64(b[24:])
	if e.Sectors > maxSectors && e.Flags&Discard == 0 || size > uint64(l.sector-entryBytes) {
		return Entry{}, 0, fmt.Errorf("%d sectors, %d bytes of mark: %w", e.Sectors, size, ErrFormat)
	}
	if e.Flags&Mark != 0 {
		e.Mark = strings.TrimRight(string(b[entryBytes:entryBytes+size]), "\x00")
	}
	next := e.data
	if e.Flags&Discard == 0 {
		next += int64(e.Sectors) * l.sector
	}
	return e, next, nil
}

// Target is what a log is played on.
type Target interface {
	io.WriterAt
	// Discard makes a range read as zeros.
	Discard(offset, length int64) error
}

// Play writes the entries from up to, but not including, to.
func (l *Log) Play(dst Target, from, to int) error {
	for i, e := range l.Entries[from:to] {
		if err := l.play(dst, e); err != nil {
			return fmt.Errorf("play entry %d: %w", from+i, err)
		}
	}
	return nil
}

func (l *Log) play(dst Target, e Entry) error {
	if e.Sectors == 0 {
		return nil
	}
	offset, length := int64(e.Sector)*l.sector, int64(e.Sectors)*l.sector
	if e.Flags&Discard != 0 {
		return dst.Discard(offset, length)
	}
	_, err := io.Copy(io.NewOffsetWriter(dst, offset), io.NewSectionReader(l.r, e.data, length))
	return err
}
