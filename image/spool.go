package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	spoolChunk   = 256 << 10
	spoolLook    = 32 << 20 // bytes written between two looks at the free space
	spoolReserve = 1 << 30  // bytes, or a twentieth of the file system where that is less
	spoolAhead   = 32 << 20 // bytes that are written before anybody asks for them
)

// spool is a file without a name, so that nothing is left of it whatever happens. One goroutine appends
// to it; others read meanwhile, and wait for what has not come yet. What nobody reads is let go again,
// so that a stream whose order suits its reader takes little room.
type spool struct {
	dir string
	f   *os.File

	looked int64 // the writer's: size at the last look at the free space

	mu    sync.Mutex
	moved *sync.Cond // something below has changed
	size  int64
	limit int64 // where the writer waits until somebody reads on
	eager int   // how many want more, wherever it is: there is no limit
	end   error // what the writer ended with; io.EOF at the end
}

func newSpool(dir string) (*spool, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := namelessFile(dir)
	if err != nil {
		return nil, classify(fmt.Errorf("make spool file in %s: %w", dir, err))
	}
	s := &spool{dir: dir, f: f, looked: -spoolLook, limit: spoolAhead}
	s.moved = sync.NewCond(&s.mu)
	return s, nil
}

// copyFrom appends all of r, and returns io.EOF at its end. Zeros become holes, and the copy stops with
// ErrNoSpace before it takes the last of a file system that others, a pool's data file among them, need
// too.
func (s *spool) copyFrom(r io.Reader) error {
	buf, zeros := make([]byte, spoolChunk), make([]byte, spoolChunk)
	for {
		n, err := io.ReadFull(r, buf)
		if err := s.append(buf[:n], bytes.Equal(buf[:n], zeros[:n])); err != nil {
			return err
		}
		if err == io.ErrUnexpectedEOF {
			return io.EOF
		}
		if err != nil {
			return err
		}
	}
}

func (s *spool) append(p []byte, zero bool) error {
	at, err := s.turn()
	if err != nil || len(p) == 0 {
		return err
	}
	if at-s.looked >= spoolLook {
		s.looked = at
		if err := s.leavesRoom(); err != nil {
			return err
		}
	}
	if zero {
		err = s.f.Truncate(at + int64(len(p)))
	} else {
		_, err = s.f.WriteAt(p, at)
	}
	if err != nil {
		return classify(fmt.Errorf("write spool file in %s: %w", s.dir, err))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = at + int64(len(p))
	s.moved.Broadcast()
	return nil
}

// turn waits until the writer may go on, and returns where.
func (s *spool) turn() (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.end == nil && s.eager == 0 && s.size >= s.limit {
		s.moved.Wait()
	}
	return s.size, s.end
}

// finish says what the spool ends with; the first to say so is right.
func (s *spool) finish(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.end == nil {
		s.end = err
	}
	s.moved.Broadcast()
}

// want makes the writer go on without a limit, until the returned function is called.
func (s *spool) want() (enough func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.eager++
	s.moved.Broadcast()
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.eager--
		s.limit = max(s.limit, s.size+spoolAhead)
	}
}

// wait waits for the bytes before end, and returns how many of all there are: less where the spool ends
// before. An error of the writer is the error. Whoever hurries makes the writer go on.
func (s *spool) wait(ctx context.Context, end int64, hurry bool) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if hurry && end > s.limit-spoolAhead {
		s.limit = min(end, math.MaxInt64-spoolAhead) + spoolAhead
		s.moved.Broadcast()
	}
	if s.size < end && s.end == nil {
		stop := context.AfterFunc(ctx, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.moved.Broadcast()
		})
		defer stop()
	}
	for s.size < end && s.end == nil && ctx.Err() == nil {
		s.moved.Wait()
	}
	switch {
	case s.size >= end || s.end == io.EOF:
		return s.size, nil
	case s.end != nil:
		return s.size, s.end
	}
	return s.size, ctx.Err()
}

// ended waits for the end.
func (s *spool) ended(ctx context.Context) error {
	defer s.want()()
	_, err := s.wait(ctx, math.MaxInt64, false)
	return err
}

// release gives the room of a range back. Where that cannot be had, it stays until close.
func (s *spool) release(offset, size int64) {
	if size > 0 {
		_ = unix.Fallocate(int(s.f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, offset, size)
	}
}

// spooled reads a spool at any place.
type spooled struct {
	*spool
	ctx           context.Context
	offset, bytes int64 // the range
	hurry         bool  // the writer is to write it, and the end must not come before
}

func (r spooled) ReadAt(p []byte, at int64) (int, error) {
	short := at > r.bytes-int64(len(p))
	if short {
		p = p[:max(r.bytes-at, 0)]
	}
	at += r.offset
	size, err := r.wait(r.ctx, at+int64(len(p)), r.hurry)
	if err != nil {
		return 0, err
	}
	if rest := size - at; rest < int64(len(p)) {
		if r.hurry {
			return 0, damaged("image archive: cut off")
		}
		p, short = p[:max(rest, 0)], true
	}
	n, err := r.f.ReadAt(p, at)
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// leavesRoom refuses to go on writing where little is free.
func (s *spool) leavesRoom() error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(s.f.Fd()), &st); err != nil {
		return fmt.Errorf("free space of %s: %w", s.dir, err)
	}
	free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	if free < min(spoolReserve, total/20)+spoolLook {
		return fmt.Errorf("spool file in %s: %d MiB free: %w", s.dir, free>>20, ErrNoSpace)
	}
	return nil
}

func namelessFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), dir+"/(spool)"), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EINVAL) {
		return nil, err
	}
	f, err := os.CreateTemp(dir, "dmlayer-spool-*") // a file system without O_TMPFILE: hostfs, old NFS
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
