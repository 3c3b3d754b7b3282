package image

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxStream is more bytes than any stream has.
const maxStream = 1 << 62

// streamTree is an archive that can be read only once, such as a pipe or a file that is compressed as a
// whole. Its bytes, without the compression, go through a spool, and its files can be opened as soon as
// they begin: while a layer comes in, it is unpacked already.
type streamTree struct {
	tarTree
	spool *spool

	// With tarTree.mu:
	added *sync.Cond
	done  bool           // all entries are known
	err   error          // why there are no more of them
	gone  map[int64]bool // files, by offset, whose bytes were let go
}

// openStream begins to read a stream. It is closed when it was read to its end. A read that blocks does
// not keep a cancelled load waiting: it is left to itself.
func openStream(ctx context.Context, r io.ReadCloser, spoolDir string) (tree, error) {
	s, err := newSpool(spoolDir)
	if err != nil {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	t := &streamTree{tarTree: tarTree{entries: map[string]tarEntry{}}, spool: s, gone: map[int64]bool{}}
	t.added = sync.NewCond(&t.mu)
	go func() {
		defer r.Close()
		s.finish(copyUnpacked(s, r))
	}()
	go t.follow(ctx)
	return t, nil
}

// copyUnpacked spools a stream without its compression. It ends with io.EOF where all is well.
func copyUnpacked(s *spool, r io.Reader) error {
	br := bufio.NewReaderSize(r, spoolChunk)
	if _, err := br.Peek(1); err == io.EOF {
		return damaged("image archive: the input is empty")
	}
	z, _, err := unpacked(br)
	if err == nil {
		defer z.Close()
		err = s.copyFrom(z)
	}
	return err // tarError says of what
}

// follow keeps the index up to what has come.
func (t *streamTree) follow(ctx context.Context) {
	err := t.index(ctx, spooled{spool: t.spool, ctx: ctx, bytes: maxStream}, maxStream, t.tell)
	if err == nil {
		// What follows the archive's end marker belongs to the stream too.
		if err = t.spool.ended(ctx); err != nil {
			err = tarError(err, false)
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done, t.err = true, err
	t.added.Broadcast()
}

// tell wakes who waits for a change of the index.
func (t *streamTree) tell() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.added.Broadcast()
}

// await lets the stream come in until have, called with the lock, is content or the end is there.
func (t *streamTree) await(ctx context.Context, have func() bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if have() {
		return nil
	}
	enough := t.spool.want()
	defer enough()
	stop := context.AfterFunc(ctx, t.tell)
	defer stop()
	for !have() {
		if t.done {
			return t.err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		t.added.Wait()
	}
	return nil
}

// first waits for one of the names, and returns it; "" at the end.
func (t *streamTree) first(ctx context.Context, names ...string) (string, error) {
	found := ""
	err := t.await(ctx, func() bool {
		for _, name := range names {
			if _, ok := t.entries[name]; ok && found == "" {
				found = name
			}
		}
		return found != ""
	})
	return found, err
}

// whole waits for the end of the stream.
func (t *streamTree) whole(ctx context.Context) error {
	err := t.await(ctx, func() bool { return false })
	return err
}

func (t *streamTree) open(ctx context.Context, name string) (*blob, error) {
	var e tarEntry
	var err error
	gone := false
	waited := t.await(ctx, func() bool {
		e, err = t.find(name)
		gone = t.gone[e.offset]
		return !errors.Is(err, errMissing)
	})
	switch {
	case waited != nil:
		return nil, waited
	case err != nil:
		return nil, err
	case gone:
		return &blob{ReaderAt: goneBytes{}, size: e.size}, nil
	}
	return &blob{ReaderAt: spooled{t.spool, ctx, e.offset, e.size, true}, size: e.size}, nil
}

// goneBytes is a file whose bytes were let go; its size is still of use.
type goneBytes struct{}

func (goneBytes) ReadAt([]byte, int64) (int, error) { return 0, errGone }

// release gives back the room that a file's bytes take. It cannot be read again.
func (t *streamTree) release(name string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, err := t.find(name); err == nil && !t.gone[e.offset] {
		t.gone[e.offset] = true
		t.spool.release(e.offset, e.size)
	}
}

// Close does not wait for the stream, whose reader ends at the next bytes that come.
func (t *streamTree) Close() error {
	t.spool.finish(io.ErrClosedPipe)
	t.mu.Lock()
	for !t.done {
		t.added.Wait()
	}
	t.mu.Unlock()
	return t.spool.f.Close()
}
