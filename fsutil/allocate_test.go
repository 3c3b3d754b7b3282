package fsutil_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// allocated returns how many bytes of a file exist on its file system.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return fi.Sys().(*syscall.Stat_t).Blocks * 512
}

func TestAllocate(t *testing.T) {
	for _, tc := range []struct {
		name string
		a    fsutil.Allocation
		min  int64
		max  int64
	}{{"sparse", fsutil.Sparse, 0, 64 << 10}, {"full", fsutil.Full, 4 << 20, 5 << 20}} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "file")
			if err := fsutil.Allocate(t.Context(), path, 4<<20, tc.a); err != nil {
				t.Fatal(err)
			}
			fi, err := os.Stat(path)
			if err != nil || fi.Size() != 4<<20 || fi.Mode() != 0o600 {
				t.Errorf("%v, %v", fi, err)
			}
			if n := allocated(t, path); n < tc.min || n > tc.max {
				t.Errorf("%d bytes are allocated", n)
			}
			if err := fsutil.Allocate(t.Context(), path, 1, tc.a); !errors.Is(err, errs.ErrExists) {
				t.Errorf("a second time: %v", err)
			}
		})
	}
}

func TestAllocateRefuses(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "file")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		err, want error
	}{
		"no directory": {fsutil.Allocate(t.Context(), filepath.Join(dir, "none", "file"), 1, fsutil.Sparse), errs.ErrNotFound},
		"too large":    {fsutil.Allocate(t.Context(), path, 1<<63, fsutil.Sparse), errs.ErrNoSpace},
		"cancelled":    {fsutil.Allocate(ctx, path, 1<<20, fsutil.Full), context.Canceled},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v", name, tc.err)
		}
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file was left: %v", err)
	}
}

func TestExtend(t *testing.T) {
	path := newFile(t, 1<<20)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 1<<20-3); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := fsutil.Extend(t.Context(), path, 3<<20, fsutil.Full); err != nil {
		t.Fatal(err)
	}
	if n := allocated(t, path); n < 2<<20 {
		t.Errorf("%d bytes are allocated", n)
	}
	if err := fsutil.Extend(t.Context(), path, 1<<20, fsutil.Sparse); err != nil {
		t.Errorf("a smaller size: %v", err)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != 3<<20 || !bytes.Equal(b[1<<20-3:1<<20], []byte("end")) || len(bytes.Trim(b[1<<20:], "\x00")) != 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if err := fsutil.Extend(t.Context(), t.TempDir()+"/none", 1, fsutil.Sparse); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	if err := fsutil.Extend(t.Context(), path, 1<<63, fsutil.Sparse); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("too large: %v", err)
	}
}

// mountMemory mounts a file system in memory.
func mountMemory(t *testing.T, typ, data string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("none", dir, typ, 0, data); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func TestFullFileSystem(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := mountMemory(t, "tmpfs", "size=4m")
	if free, err := fsutil.FreeSpace(dir); err != nil || free != 4<<20 {
		t.Errorf("free space %d, %v", free, err)
	}
	path := filepath.Join(dir, "file")
	err := fsutil.Allocate(t.Context(), path, 8<<20, fsutil.Full)
	if !errors.Is(err, errs.ErrNoSpace) || errs.Hint(err) == "" {
		t.Errorf("got %v, hint %q", err, errs.Hint(err))
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file was left: %v", err)
	}
	if err := fsutil.Allocate(t.Context(), path, 1<<20, fsutil.Full); err != nil {
		t.Fatal(err)
	}
	if err := fsutil.Extend(t.Context(), path, 8<<20, fsutil.Full); !errors.Is(err, errs.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	if fi, err := os.Stat(path); err != nil || fi.Size() != 1<<20 {
		t.Errorf("%v, %v: the size has changed", fi, err)
	}
	if free, err := fsutil.FreeSpace(dir); err != nil || free != 3<<20 {
		t.Errorf("free space %d, %v: what was not used was not given back", free, err)
	}
}

// ramfs has no fallocate: zeros are written.
func TestAllocateWithoutFallocate(t *testing.T) {
	testenv.Need(t, testenv.Root)
	path := filepath.Join(mountMemory(t, "ramfs", ""), "file")
	const size = 3<<20 + 5
	if err := fsutil.Allocate(t.Context(), path, size, fsutil.Full); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil || len(b) != size || len(bytes.Trim(b, "\x00")) != 0 {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := fsutil.Extend(ctx, path, 2*size, fsutil.Full); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}
