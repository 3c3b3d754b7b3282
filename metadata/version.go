package metadata

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Where bbolt keeps the number of the last transaction (internal/common/meta.go of bbolt 1.x, file
// format 2, unchanged since 2014): the first two pages are headers, written in turn.
const (
	pageHeader   = 16
	metaMagic    = 0xED0CDAED
	metaFormat   = 2
	metaPageSize = 8  // u32
	metaTxID     = 48 // u64
	metaSum      = 56 // u64, FNV-1a of what is before
	metaEnd      = 64
)

// Version returns the number of the last transaction that changed the store, without a transaction:
// what was read at a version is still so while the version is the same. 0 means that it could not be
// told.
//
// A transaction that is being committed may be seen or not, so ask while holding whatever lock keeps
// the record in question from changing.
func (s *Store) Version() (uint64, error) {
	var st unix.Stat_t
	if v := s.mappedVersion(&st); v != 0 {
		if s.single {
			s.looked = &st
		}
		return v, nil
	}
	return versionAt(s.path)
}

// versionAt reads the version of the store at path, 0 for what has no header.
func versionAt(path string) (uint64, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		err = errs.ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("open record store %s: %w", path, err)
	}
	defer unix.Close(fd)
	size := os.Getpagesize()
	b := make([]byte, 2*size)
	if _, err := unix.Pread(fd, b, 0); err != nil {
		return 0, fmt.Errorf("read record store %s: %w", path, err)
	}
	return max(transactionOf(b[:size]), transactionOf(b[size:])), nil
}

// newestHeader returns the page that says what the last transaction was, and its place.
func newestHeader(f *os.File) (page []byte, at int64, err error) {
	size := os.Getpagesize()
	b := make([]byte, 2*size)
	n, err := f.ReadAt(b, 0)
	if errors.Is(err, io.EOF) {
		err = fmt.Errorf("%s has %d bytes: %w", f.Name(), n, errs.ErrDamaged)
	}
	if err != nil {
		return nil, 0, err
	}
	first, second := transactionOf(b[:size]), transactionOf(b[size:])
	switch {
	case first == 0 && second == 0:
		return nil, 0, fmt.Errorf("%s has no header: %w", f.Name(), errs.ErrDamaged)
	case first > second:
		return b[:size], 0, nil
	}
	return b[size:], int64(size), nil
}

// transactionOf reads a header page in the machine's byte order, as bbolt writes it. One that is not
// whole, or of another format, is 0.
func transactionOf(page []byte) uint64 {
	m := page[pageHeader:]
	order := binary.NativeEndian
	whole := order.Uint32(m) == metaMagic && order.Uint32(m[4:]) == metaFormat &&
		int(order.Uint32(m[metaPageSize:])) == len(page) && order.Uint64(m[metaSum:metaEnd]) == headerSum(m)
	if !whole {
		return 0
	}
	return order.Uint64(m[metaTxID:])
}

// pagesOf is how many pages a store has, of which the header is.
func pagesOf(header []byte) int64 {
	pages := binary.NativeEndian.Uint64(header[pageHeader+metaPages:])
	return int64(min(pages, math.MaxInt64/uint64(len(header))))
}

func headerSum(m []byte) uint64 {
	sum := fnv.New64a()
	_, _ = sum.Write(m[:metaSum])
	return sum.Sum64()
}

// raiseVersion gives a store that nobody has open at least that version: transactions are counted on from there. Nothing else in
// the file depends on the count.
func raiseVersion(path string, version uint64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	page, at, err := newestHeader(f)
	if err != nil || transactionOf(page) >= version {
		return err
	}
	m := page[pageHeader:]
	binary.NativeEndian.PutUint64(m[metaTxID:], version)
	binary.NativeEndian.PutUint64(m[metaSum:], headerSum(m))
	if _, err := f.WriteAt(page, at); err != nil {
		return err
	}
	return f.Sync()
}
