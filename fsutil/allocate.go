package fsutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Allocation says how much of a file exists on its file system.
type Allocation int

const (
	// Sparse has a size and no blocks.
	Sparse Allocation = iota
	// Full has all its blocks: writing to it never finds the file system full (unless it copies on write).
	Full
)

// Allocate creates a file of size bytes that reads as zeros, mode 0600, and makes it and its name durable. A
// file that exists is errs.ErrExists; a full file system is errs.ErrNoSpace. Where it fails, what it created
// is gone again.
func Allocate(ctx context.Context, path string, size uint64, a Allocation) error {
	const what = "create file"
	if size > 1<<63-1 {
		return fail(what, path, unix.EFBIG)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(what, path, errors.Unwrap(err))
	}
	err = fill(ctx, f, int64(size), a)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = SyncDir(filepath.Dir(path))
	}
	if err == nil {
		return nil
	}
	err = fail(fmt.Sprintf("%s of %d bytes", what, size), path, err)
	if rerr := os.Remove(path); rerr != nil {
		err = errors.Join(err, rerr)
	}
	return err
}

func fill(ctx context.Context, f *os.File, size int64, a Allocation) error {
	if err := f.Truncate(size); err != nil {
		return err
	}
	if a == Full {
		if err := allocateRange(ctx, f, 0, size); err != nil {
			return err
		}
	}
	return f.Sync()
}

// Extend makes a file larger, keeps what it has, and makes the new size durable. A size that is not larger
// changes nothing. With Full, the new part is allocated; a full file system is errs.ErrNoSpace, and the file has its
// old size.
func Extend(ctx context.Context, path string, size uint64, a Allocation) error {
	const what = "extend file"
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fail(what, path, errors.Unwrap(err))
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return fail(what, path, errors.Unwrap(err))
	}
	if !fi.Mode().IsRegular() || size > 1<<63-1 {
		return fmt.Errorf("%s %s to %d bytes: %w", what, path, size, errs.ErrInvalid)
	}
	old := fi.Size()
	if int64(size) <= old {
		return nil
	}
	if a == Full {
		err = allocateRange(ctx, f, old, int64(size)-old)
	}
	if err == nil {
		err = f.Truncate(int64(size))
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		return nil
	}
	err = fail(fmt.Sprintf("%s to %d bytes:", what, size), path, err)
	if terr := f.Truncate(old); terr != nil {
		err = errors.Join(err, terr)
	}
	return err
}

// allocateStep bounds one system call, so that a cancelled context is noticed.
const (
	allocateStep = 1 << 30
	writeStep    = 1 << 20
)

// allocateRange gives a range of a file its blocks: by fallocate(2), or by writing zeros where the file system
// cannot do that.
func allocateRange(ctx context.Context, f *os.File, off, length int64) error {
	for end := off + length; off < end; {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n := min(end-off, allocateStep)
		err := retryEINTR(func() error { return unix.Fallocate(int(f.Fd()), 0, off, n) })
		if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			return writeZeros(ctx, f, off, end)
		}
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

func writeZeros(ctx context.Context, f *os.File, off, end int64) error {
	zeros := make([]byte, writeStep)
	for off < end {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		n, err := f.WriteAt(zeros[:min(end-off, writeStep)], off)
		if err != nil {
			return err
		}
		off += int64(n)
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fail("sync directory", dir, errors.Unwrap(err))
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fail("sync directory", dir, errors.Unwrap(err))
	}
	return nil
}

// FreeSpace returns how many bytes an ordinary user may still write to the file system that dir is on.
func FreeSpace(dir string) (uint64, error) {
	var sf unix.Statfs_t
	if err := retryEINTR(func() error { return unix.Statfs(dir, &sf) }); err != nil {
		return 0, fail("free space of", dir, err)
	}
	return sf.Bavail * uint64(sf.Frsize), nil
}
