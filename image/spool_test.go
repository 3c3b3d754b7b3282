package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

// filled returns a spool that a goroutine fills from r.
func filled(t *testing.T, r io.Reader, dir string) *spool {
	t.Helper()
	s, err := newSpool(dir)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.finish(s.copyFrom(r))
	}()
	t.Cleanup(func() {
		s.finish(io.ErrClosedPipe)
		<-done
		s.f.Close()
	})
	return s
}

// TestSpool reads what is still being written, and leaves no file behind.
func TestSpool(t *testing.T) {
	dir := t.TempDir()
	data := append(bytes.Repeat([]byte("data"), 100000), make([]byte, 3<<20)...)
	s := filled(t, bytes.NewReader(data), dir)
	all := spooled{spool: s, ctx: t.Context(), bytes: int64(len(data)), hurry: true}
	got := make([]byte, len(data))
	if _, err := all.ReadAt(got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes (%v), want %d", len(got), err, len(data))
	}
	if _, err := all.ReadAt(got[:10], int64(len(data))-5); err != io.EOF || !bytes.Equal(got[:5], data[len(data)-5:]) {
		t.Errorf("at the end: %v", err)
	}
	if err := s.ended(t.Context()); err != nil {
		t.Error(err)
	}
	more := spooled{spool: s, ctx: t.Context(), bytes: int64(len(data)) + 10, hurry: true}
	if _, err := more.ReadAt(got[:10], int64(len(data))); !errors.Is(err, ErrDamaged) {
		t.Errorf("beyond the end: %v", err)
	}
	s.release(0, 4096)
	if _, err := all.ReadAt(got[:4096], 0); err != nil || !bytes.Equal(got[:4096], make([]byte, 4096)) {
		t.Errorf("let go: %v", err)
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

func TestSpoolFails(t *testing.T) {
	s := filled(t, io.MultiReader(bytes.NewReader(make([]byte, 1000)), failingReader{}), t.TempDir())
	if err := s.ended(t.Context()); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("failing source: %v", err)
	}
	if _, err := newSpool(t.TempDir() + "/nothing"); err == nil {
		t.Error("spooled into a directory that is not there")
	}
}

// countingSource is an endless stream.
type countingSource struct{ n chan int64 }

func (c countingSource) Read(p []byte) (int, error) {
	clear(p)
	n := <-c.n
	c.n <- n + int64(len(p))
	return len(p), nil
}

// TestSpoolWaits writes no further ahead than it may, whatever the source would give, and ends a wait
// with its context.
func TestSpoolWaits(t *testing.T) {
	src := countingSource{make(chan int64, 1)}
	src.n <- 0
	s := filled(t, src, t.TempDir())
	at := spooled{spool: s, ctx: t.Context(), bytes: maxStream, hurry: true}
	for _, want := range []int64{1, spoolAhead, 5 * spoolAhead} {
		if _, err := at.ReadAt(make([]byte, 1), want); err != nil {
			t.Fatal(err)
		}
		n := <-src.n
		src.n <- n
		if n > want+1+spoolAhead+2*spoolChunk {
			t.Errorf("read %d bytes while %d were asked for", n, want)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	lazy := spooled{spool: s, ctx: ctx, bytes: maxStream}
	cancel()
	if _, err := lazy.ReadAt(make([]byte, 1), 100*spoolAhead); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}
