// Package lockfile locks byte ranges of a file with open-file-description locks (F_OFD_SETLK, Linux
// 3.15, fcntl(2)).
//
// The kernel drops such a lock when its open description is closed, also when its owner is killed.
// Locks of two Holders exclude each other also within one process, which the locks of POSIX do not.
// Locks are names: the bytes need not exist. What the file itself holds (ReadAt, WriteAt) is for the owners of
// locks to agree on; it is volatile and never synced.
package lockfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Mode says how a range is locked.
type Mode int16

const (
	// Shared excludes Exclusive.
	Shared Mode = unix.F_RDLCK
	// Exclusive excludes everything.
	Exclusive Mode = unix.F_WRLCK
)

func (m Mode) String() string {
	switch m {
	case Shared:
		return "shared"
	case Exclusive:
		return "exclusive"
	}
	return fmt.Sprintf("Mode(%d)", int16(m))
}

// Range is the bytes [Start, Start+Len). They need not exist in the file.
type Range struct{ Start, Len int64 }

func (r Range) String() string { return fmt.Sprintf("[%d,+%d]", r.Start, r.Len) }

func (r Range) valid() bool { return r.Start >= 0 && r.Len > 0 && r.Start+r.Len > r.Start }

func (r Range) overlaps(o Range) bool { return r.Start < o.Start+o.Len && o.Start < r.Start+r.Len }

// ErrReplaced says that somebody else has a lock on a file that is no longer the one at the path, while the
// Holder has locks on it too, so that it cannot go over to the new file. It has to be closed and the work begun again.
var ErrReplaced = fmt.Errorf("lock file was replaced: %w", errs.ErrDamaged)

// File is a lock file. It holds no resources, and is safe for concurrent use.
type File struct{ path string }

// Open names a lock file. It is created, with mode 0600, by the first Holder.
func Open(path string) *File { return &File{path: path} }

// Path returns the path of the lock file.
func (f *File) Path() string { return f.path }

// Holder returns a new open description of the file, closed on exec. Two Holders exclude each other;
// what shares a Holder does not.
func (f *File) Holder(ctx context.Context) (*Holder, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, fmt.Errorf("open lock file %s: %w", f.path, err)
	}
	h := &Holder{path: f.path, fd: -1}
	if err := h.open(); err != nil {
		return nil, err
	}
	return h, nil
}

// Held says whether anybody holds any lock in the range of the file that is at the path now. It opens the file to read only, so that
// whoever is told of its closing by writers, as of the end of their locks, does not hear of it. Where there is no file, nobody does.
func (f *File) Held(r Range) (bool, error) {
	fd, err := ignoringEINTR(func() (int, error) { return unix.Open(f.path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) })
	h := &Holder{path: f.path, fd: fd}
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, h.fail("open lock file", err)
	}
	defer func() { _ = unix.Close(fd) }()
	return h.Held(r)
}

// Holder owns locks on one file through one open description. It is for one operation, thus for one
// goroutine at a time.
type Holder struct {
	path string
	fd   int
	id   fileID
	held []Range
}

type fileID struct{ dev, ino uint64 }

func (h *Holder) open() error {
	open := func() (int, error) {
		return unix.Open(h.path, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	}
	fd, err := ignoringEINTR(open)
	if errors.Is(err, unix.ENOENT) { // the run directory was cleaned
		if err = os.MkdirAll(filepath.Dir(h.path), 0o700); err == nil {
			fd, err = ignoringEINTR(open)
		}
	}
	if err != nil {
		return h.fail("open lock file", err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return h.fail("open lock file", err)
	}
	h.fd, h.id = fd, fileID{uint64(st.Dev), st.Ino}
	return nil
}

// Lock locks a range and waits, without polling, until nobody else has a lock that excludes it. When
// ctx ends first, Lock returns its cause once the kernel has forgotten the request: a cancelled
// wait never takes the lock. A range that overlaps one that the Holder has is errs.ErrInvalid: there is no
// upgrade.
//
// Where the file was removed or replaced (a cleaned run directory), a Holder without locks goes over to the file that
// is now at the path, so that no two Holders settle for different files from then on. One that has locks
// stays with its file, and would rather fail with ErrReplaced than wait for somebody there.
func (h *Holder) Lock(ctx context.Context, r Range, mode Mode) error {
	for {
		ok, err := h.TryLock(r, mode)
		if ok || err != nil {
			return err
		}
		if err := wait(ctx, h.fd, flock(r, int16(mode))); err != nil {
			if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || err == context.Cause(ctx) {
				return fmt.Errorf("lock %s of %s: %w", r, h.path, err)
			}
			return h.fail("lock "+r.String()+" of", err)
		}
		ok, err = h.took(r)
		if ok || err != nil {
			return err
		}
	}
}

// TryLock locks a range if that is possible at once, and says whether it did.
func (h *Holder) TryLock(r Range, mode Mode) (bool, error) {
	if err := h.check(r, mode); err != nil {
		return false, err
	}
	for {
		err := setlk(h.fd, unix.F_OFD_SETLK, flock(r, int16(mode)))
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			// Busy, but perhaps on a file that is no longer the one at the path.
			moved, err := h.moved()
			if err != nil || !moved {
				return false, err
			}
			if err := h.reopen(); err != nil {
				return false, err
			}
			continue
		}
		if err != nil {
			return false, h.fail("lock "+r.String()+" of", err)
		}
		ok, err := h.took(r)
		if ok || err != nil {
			return ok, err
		}
	}
}

// took books a range that the kernel has given, if the file still is the one at the path. Otherwise it
// gives the range back and, where nothing is lost by that, goes over to the new file.
//
// With its first lock a Holder settles for a file; whoever replaces it after that is met by the next Holder.
func (h *Holder) took(r Range) (bool, error) {
	if len(h.held) > 0 {
		h.held = append(h.held, r)
		return true, nil
	}
	moved, err := h.moved()
	if err == nil && !moved {
		h.held = append(h.held, r)
		return true, nil
	}
	if err == nil {
		err = h.reopen()
	}
	if err != nil && h.fd >= 0 {
		_ = setlk(h.fd, unix.F_OFD_SETLK, flock(r, unix.F_UNLCK))
	}
	return false, err
}

// moved says whether the path now leads to another file than the one that is open, or to none.
func (h *Holder) moved() (bool, error) {
	var st unix.Stat_t
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.Lstat(h.path, &st) })
	switch {
	case err == nil:
		return h.id != fileID{uint64(st.Dev), st.Ino}, nil
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	}
	return false, h.fail("look at lock file", err)
}

func (h *Holder) reopen() error {
	if len(h.held) > 0 {
		return fmt.Errorf("lock file %s: %w", h.path, ErrReplaced)
	}
	_ = unix.Close(h.fd)
	h.fd = -1
	return h.open()
}

// Unlock gives back a range exactly as it was locked.
func (h *Holder) Unlock(r Range) error {
	i := slices.Index(h.held, r)
	if i < 0 {
		return fmt.Errorf("unlock %s of %s: not held: %w", r, h.path, errs.ErrInvalid)
	}
	h.held = slices.Delete(h.held, i, i+1)
	if err := setlk(h.fd, unix.F_OFD_SETLK, flock(r, unix.F_UNLCK)); err != nil {
		return h.fail("unlock "+r.String()+" of", err)
	}
	return nil
}

// ReadAt reads the lock file itself, which may hold what is only looked at under a lock. At its end the error
// is io.EOF.
func (h *Holder) ReadAt(b []byte, off int64) (int, error) {
	n, err := ignoringEINTR(func() (int, error) { return unix.Pread(h.fd, b, off) })
	if err != nil {
		return 0, h.fail("read lock file", err)
	}
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes to the lock file itself. What is written lives as long as the file does.
func (h *Holder) WriteAt(b []byte, off int64) (int, error) {
	n, err := ignoringEINTR(func() (int, error) { return unix.Pwrite(h.fd, b, off) })
	if err != nil {
		return 0, h.fail("write lock file", err)
	}
	if n < len(b) {
		return n, h.fail("write lock file", io.ErrShortWrite)
	}
	return n, nil
}

// Check is ErrReplaced where the file at the path is no longer the one that the Holder's locks are on, so
// that others may hold the same ranges of the new one.
func (h *Holder) Check() error {
	moved, err := h.moved()
	if err == nil && moved {
		err = fmt.Errorf("lock file %s: %w", h.path, ErrReplaced)
	}
	return err
}

// NextData returns the first offset at or after off where the file may hold anything but zeros, or io.EOF.
// On a file system that does not tell, it is off itself.
func (h *Holder) NextData(off int64) (int64, error) {
	at, err := unix.Seek(h.fd, off, unix.SEEK_DATA)
	if errors.Is(err, unix.ENXIO) {
		return 0, io.EOF
	}
	if err != nil {
		return 0, h.fail("seek in lock file", err)
	}
	return at, nil
}

// Held says whether somebody else, in this process or another, holds any lock in the range.
func (h *Holder) Held(r Range) (bool, error) {
	if !r.valid() || h.fd < 0 {
		return false, fmt.Errorf("look at lock %s of %s: %w", r, h.path, errs.ErrInvalid)
	}
	lk := flock(r, unix.F_WRLCK)
	if err := setlk(h.fd, unix.F_OFD_GETLK, lk); err != nil {
		return false, h.fail("look at lock "+r.String()+" of", err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// Release gives back every lock and keeps the Holder, for another operation.
func (h *Holder) Release() error {
	if h.fd < 0 || len(h.held) == 0 {
		return nil
	}
	h.held = h.held[:0]
	if err := setlk(h.fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}); err != nil {
		return h.fail("unlock", err)
	}
	return nil
}

// Inherit gives the Holder's description, with all of its locks, to a file for a program that is started. The Holder is closed; the locks
// last until the file is, and what was started with it.
func (h *Holder) Inherit() (*os.File, error) {
	if h.fd < 0 {
		return nil, fmt.Errorf("hand on locks of %s: holder is closed: %w", h.path, errs.ErrInvalid)
	}
	f := os.NewFile(uintptr(h.fd), h.path)
	h.fd, h.held = -1, nil
	return f, nil
}

// Close gives back everything. It may be called more than once.
func (h *Holder) Close() error {
	if h == nil || h.fd < 0 {
		return nil
	}
	fd := h.fd
	h.fd = -1
	// A program being started has copies of all descriptors until it execs, and with them the description
	// and its locks. Giving the locks back does not wait for it.
	var err error
	if len(h.held) > 0 {
		err = setlk(fd, unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK})
	}
	h.held = nil
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return h.fail("close lock file", err)
	}
	return nil
}

func (h *Holder) check(r Range, mode Mode) error {
	switch {
	case h.fd < 0:
		return fmt.Errorf("lock %s of %s: holder is closed: %w", r, h.path, errs.ErrInvalid)
	case !r.valid():
		return fmt.Errorf("lock %s of %s: bad range: %w", r, h.path, errs.ErrInvalid)
	case mode != Shared && mode != Exclusive:
		return fmt.Errorf("lock %s of %s: bad mode %d: %w", r, h.path, mode, errs.ErrInvalid)
	}
	for _, o := range h.held {
		if r.overlaps(o) {
			return fmt.Errorf("lock %s of %s: the holder has %s already: %w", r, h.path, o, errs.ErrInvalid)
		}
	}
	return nil
}

func (h *Holder) fail(op string, err error) error {
	err = &os.PathError{Op: op, Path: h.path, Err: err}
	switch {
	case errors.Is(err, fs.ErrPermission):
		return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrUnsupported), "run as root")
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w: %w", err, errs.ErrNotFound)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOLCK):
		return fmt.Errorf("%w: %w", err, errs.ErrNoSpace)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: %w", err, errs.ErrUnsupported) // before Linux 3.15
	}
	return err
}

func flock(r Range, typ int16) *unix.Flock_t {
	return &unix.Flock_t{Type: typ, Whence: unix.SEEK_SET, Start: r.Start, Len: r.Len}
}

func setlk(fd, cmd int, lk *unix.Flock_t) error {
	_, err := ignoringEINTR(func() (int, error) { return 0, unix.FcntlFlock(uintptr(fd), cmd, lk) })
	return err
}

func ignoringEINTR(f func() (int, error)) (int, error) {
	for {
		n, err := f()
		if err != unix.EINTR {
			return n, err
		}
	}
}
