package metadata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
)

// The pages of a bbolt file, in the machine's byte order. bbolt's own check follows whatever a damaged page says, in
// circles too, and in goroutines of its own, whose panics nobody can catch. This one reads each page once.
const (
	pageBranch   = 0x01
	pageLeaf     = 0x02
	pageFreelist = 0x10
	elementSize  = 16 // of branch and leaf pages
	leafBucket   = 0x01
	bucketHeader = 16 // root page and sequence number
	manyFree     = 0xffff

	metaRoot     = 16
	metaFreelist = 32
	metaPages    = 40
)

// pageWalk reads the pages of a store as of its last transaction.
type pageWalk struct {
	r        io.ReaderAt
	pageSize uint64
	pages    uint64 // how many there are
	seen     map[uint64]bool
	problems []string
}

// checkPages reads all pages of a bbolt file of some size once, of which the newest header is given, and returns what is wrong
// with them, at most maxProblems. The error is that of reading.
func checkPages(header []byte, r io.ReaderAt, size int64) ([]string, error) {
	order := binary.NativeEndian
	m := header[pageHeader:]
	w := pageWalk{
		r: r, pageSize: uint64(len(header)), pages: order.Uint64(m[metaPages:]),
		seen: map[uint64]bool{0: true, 1: true},
	}
	if w.pages > uint64(size)/w.pageSize {
		w.problem("the file has %d bytes, and should have %d pages", size, w.pages)
		return w.problems, nil
	}
	if err := w.tree(order.Uint64(m[metaRoot:]), nil, nil); err != nil {
		return nil, err
	}
	free, err := w.freelist(order.Uint64(m[metaFreelist:]))
	if err != nil {
		return nil, err
	}
	w.compareFree(free)
	return w.problems, nil
}

// maxProblems bounds what is said of one store.
const maxProblems = 100

func (w *pageWalk) problem(format string, args ...any) {
	if len(w.problems) < maxProblems {
		w.problems = append(w.problems, fmt.Sprintf(format, args...))
	}
}

// page reads a page that must not have been read before. nil is one of which the problem has been told.
func (w *pageWalk) page(id uint64) ([]byte, error) {
	if id < 2 || id >= w.pages {
		w.problem("page %d: there are %d", id, w.pages)
		return nil, nil
	}
	if w.seen[id] {
		w.problem("page %d belongs to two", id)
		return nil, nil
	}
	w.seen[id] = true
	head := make([]byte, pageHeader)
	if err := w.read(id, head); err != nil {
		return nil, err
	}
	more := uint64(binary.NativeEndian.Uint32(head[12:]))
	if got := binary.NativeEndian.Uint64(head); got != id || more >= w.pages-id {
		w.problem("page %d: it is page %d of %d with %d behind it", id, got, w.pages, more)
		return nil, nil
	}
	for next := id + 1; next <= id+more; next++ {
		if w.seen[next] {
			w.problem("page %d belongs to two", next)
			return nil, nil
		}
		w.seen[next] = true
	}
	b := make([]byte, (more+1)*w.pageSize)
	return b, w.read(id, b)
}

func (w *pageWalk) read(id uint64, b []byte) error {
	if _, err := w.r.ReadAt(b, int64(id*w.pageSize)); err != nil {
		return fmt.Errorf("page %d: %w", id, err)
	}
	return nil
}

// tree reads a bucket's pages from a root on. Keys lie from low, included, to high, not included; nil is no bound.
func (w *pageWalk) tree(id uint64, low, high []byte) error {
	b, err := w.page(id)
	if b == nil || err != nil {
		return err
	}
	name := fmt.Sprintf("page %d", id)
	switch flags := binary.NativeEndian.Uint16(b[8:]); flags {
	case pageLeaf:
		return w.leaf(name, b, low, high)
	case pageBranch:
		return w.branch(name, b, low, high)
	default:
		w.problem("%s: it is of kind %#x, and should be part of a tree", name, flags)
		return nil
	}
}

func (w *pageWalk) branch(name string, b, low, high []byte) error {
	order := binary.NativeEndian
	keys := make([][]byte, 0, order.Uint16(b[10:]))
	ids := make([]uint64, 0, cap(keys))
	for i := range cap(keys) {
		e, ok := element(b, i)
		if !ok {
			w.problem("%s: entry %d lies outside of it", name, i)
			return nil
		}
		key, ok := slice(e, order.Uint32(e), order.Uint32(e[4:]))
		if !ok {
			w.problem("%s: key %d lies outside of it", name, i)
			return nil
		}
		keys, ids = append(keys, key), append(ids, order.Uint64(e[8:]))
	}
	if !w.inOrder(name, keys, low, high) {
		return nil
	}
	for i, id := range ids {
		end := high
		if i+1 < len(keys) {
			end = keys[i+1]
		}
		if err := w.tree(id, keys[i], end); err != nil {
			return err
		}
	}
	return nil
}

func (w *pageWalk) leaf(name string, b, low, high []byte) error {
	order := binary.NativeEndian
	keys := make([][]byte, 0, order.Uint16(b[10:]))
	var buckets [][]byte
	for i := range cap(keys) {
		e, ok := element(b, i)
		if !ok {
			w.problem("%s: entry %d lies outside of it", name, i)
			return nil
		}
		flags, pos, klen, vlen := order.Uint32(e), order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		key, ok := slice(e, pos, klen)
		value, fits := slice(e, pos+klen, vlen)
		if !ok || !fits || pos+klen < pos {
			w.problem("%s: record %d lies outside of it", name, i)
			return nil
		}
		keys = append(keys, key)
		if flags&leafBucket != 0 {
			buckets = append(buckets, value)
		}
	}
	if !w.inOrder(name, keys, low, high) {
		return nil
	}
	for _, v := range buckets {
		if err := w.bucket(name, v); err != nil {
			return err
		}
	}
	return nil
}

// bucket reads a bucket of which the value in its parent is given: a small one lies in it.
func (w *pageWalk) bucket(name string, v []byte) error {
	if len(v) < bucketHeader {
		w.problem("%s: a bucket's head is cut off", name)
		return nil
	}
	if root := binary.NativeEndian.Uint64(v); root != 0 {
		return w.tree(root, nil, nil)
	}
	inline := v[bucketHeader:]
	if len(inline) < pageHeader || binary.NativeEndian.Uint16(inline[8:]) != pageLeaf {
		w.problem("%s: a small bucket in it is none", name)
		return nil
	}
	return w.leaf(name, inline, nil, nil)
}

func (w *pageWalk) inOrder(name string, keys [][]byte, low, high []byte) bool {
	for i, k := range keys {
		if i > 0 && bytes.Compare(keys[i-1], k) >= 0 || low != nil && bytes.Compare(k, low) < 0 || high != nil && bytes.Compare(k, high) >= 0 {
			w.problem("%s: key %d is out of order", name, i)
			return false
		}
	}
	return true
}

// element returns the bytes from an entry of a page on: positions count from there.
func element(b []byte, i int) ([]byte, bool) {
	at := pageHeader + i*elementSize
	if at+elementSize > len(b) {
		return nil, false
	}
	return b[at:], true
}

func slice(b []byte, pos, length uint32) ([]byte, bool) {
	end := uint64(pos) + uint64(length)
	if end > uint64(len(b)) {
		return nil, false
	}
	return b[pos:end], true
}

// freelist returns the pages that are free.
func (w *pageWalk) freelist(id uint64) ([]byte, error) {
	b, err := w.page(id)
	if b == nil || err != nil {
		return nil, err
	}
	if flags := binary.NativeEndian.Uint16(b[8:]); flags != pageFreelist {
		w.problem("page %d: it is of kind %#x, and should be the list of free pages", id, flags)
		return nil, nil
	}
	n, list := uint64(binary.NativeEndian.Uint16(b[10:])), b[pageHeader:]
	if n == manyFree {
		n, list = binary.NativeEndian.Uint64(list), list[8:]
	}
	if n > uint64(len(list))/8 {
		w.problem("page %d: the list of free pages is cut off", id)
		return nil, nil
	}
	return list[:n*8], nil
}

// compareFree tells of pages that are in use and free, or neither: the first will be overwritten, the second are lost
// room.
func (w *pageWalk) compareFree(free []byte) {
	if len(w.problems) > 0 {
		return // what is below a damaged page was not seen
	}
	for ; len(free) > 0; free = free[8:] {
		id := binary.NativeEndian.Uint64(free)
		if id >= w.pages || w.seen[id] {
			w.problem("page %d is free and in use, or is none", id)
			continue
		}
		w.seen[id] = true
	}
	for id := range w.pages {
		if !w.seen[id] {
			w.problem("page %d is neither in use nor free", id)
		}
	}
}
