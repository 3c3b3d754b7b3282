// Package ahead reads a stream, and hashes it, ahead of whoever wants it: a compressed layer is read, unpacked, hashed and made into files by as many processors
// as there are.
package ahead

import (
	"hash"
	"io"
	"sync"
)

const (
	chunkSize = 512 << 10 // bytes that go from one goroutine to the next at once
	maxChunks = 6         // of them at most in one stage
)

// chunks are the buffers of all stages of all loads: layers are many and often small.
var chunks = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// chunk is a piece of a stream.
type chunk struct {
	buf  *[chunkSize]byte
	n    int
	err  error // what comes after it
	mark int64 // how far the source's own source was read by then
}

// Reader reads a stream in a goroutine of its own, and hashes it in another, so that its reader waits for
// neither where there are processors enough. The pieces are large: where there is one processor, what
// counts is how seldom goroutines take turns. It is for one goroutine.
type Reader struct {
	hash hash.Hash // of all that was read; whoever has read to the end may look
	size int64     // likewise
	mark int64     // of what is being read

	taken int64 // bytes that were read here

	out  <-chan chunk
	free chan *[chunkSize]byte
	stop chan struct{}
	all  sync.WaitGroup

	cur  chunk
	rest []byte
}

// New begins to read r, which is in its hands until Close. A nil h hashes nothing; mark, where set,
// is called after each reading, by the goroutine that reads.
func New(r io.Reader, h hash.Hash, mark func() int64) *Reader {
	a := &Reader{hash: h, free: make(chan *[chunkSize]byte, maxChunks), stop: make(chan struct{})}
	for range maxChunks {
		a.free <- nil // made when it is needed
	}
	filled := make(chan chunk, maxChunks)
	a.out = filled
	a.all.Go(func() { a.fill(r, filled, mark) })
	if h != nil {
		hashed := make(chan chunk, maxChunks)
		a.out = hashed
		a.all.Go(func() { a.digest(filled, hashed) })
	}
	return a
}

// fill reads until the end, an error, or the stop. No channel is ever too full for a chunk.
func (a *Reader) fill(r io.Reader, to chan<- chunk, mark func() int64) {
	defer close(to)
	for {
		c := chunk{}
		select {
		case c.buf = <-a.free:
		case <-a.stop:
			return
		}
		if c.buf == nil {
			c.buf = chunks.Get().(*[chunkSize]byte)
		}
		for empty := 0; c.n < len(c.buf) && c.err == nil; {
			n, err := r.Read(c.buf[c.n:])
			c.n, c.err = c.n+n, err
			if n > 0 {
				empty = 0
			} else if empty++; empty > 100 && err == nil {
				c.err = io.ErrNoProgress
			}
		}
		if mark != nil {
			c.mark = mark()
		}
		to <- c
		if c.err != nil {
			return
		}
	}
}

func (a *Reader) digest(from <-chan chunk, to chan<- chunk) {
	defer close(to)
	for c := range from {
		a.hash.Write(c.buf[:c.n])
		a.size += int64(c.n)
		to <- c
	}
}

// Read is io.Reader.
func (a *Reader) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.buf != nil {
			a.free <- a.cur.buf
		}
		a.cur = <-a.out
		a.rest, a.mark = a.cur.buf[:a.cur.n], a.cur.mark
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	a.taken += int64(n)
	return n, nil
}

// Taken returns how many bytes were read here.
func (a *Reader) Taken() int64 { return a.taken }

// Size returns how many bytes were hashed. It is known once the end was read.
func (a *Reader) Size() int64 { return a.size }

// Hash returns what New was given, with all that was read in it once that was to the end.
func (a *Reader) Hash() hash.Hash { return a.hash }

// Mark returns what New's mark said when the bytes that were read here last had come.
func (a *Reader) Mark() int64 { return a.mark }

// Close ends the goroutines. A reading under way is waited for: whoever closes sees to it that it ends.
func (a *Reader) Close() {
	close(a.stop)
	a.all.Wait()
	if a.cur.buf != nil {
		chunks.Put(a.cur.buf)
	}
	for c := range a.out {
		chunks.Put(c.buf)
	}
	close(a.free)
	for buf := range a.free {
		if buf != nil {
			chunks.Put(buf)
		}
	}
}
