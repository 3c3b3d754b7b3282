package image

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	spoolChunk   = 256 << 10
	spoolLook    = 32 << 20 // bytes written between two looks at the free space
	spoolReserve = 1 << 30  // bytes, or a twentieth of the file system where that is less
)

// spool copies r into a file in dir ("" is the system's temporary directory) that has no name, so that
// nothing is left of it whatever happens. Zeros become holes, and the copy stops with ErrNoSpace before
// it takes the last of a file system that others, a pool's data file among them, need too.
func spool(r io.Reader, dir string) (_ *os.File, size int64, err error) {
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := namelessFile(dir)
	if err != nil {
		return nil, 0, fmt.Errorf("make spool file in %s: %w", dir, err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	buf, zeros := make([]byte, spoolChunk), make([]byte, spoolChunk)
	for looked := int64(-spoolLook); ; {
		if size-looked >= spoolLook {
			looked = size
			if err := leavesRoom(f, dir); err != nil {
				return nil, 0, err
			}
		}
		n, rerr := io.ReadFull(r, buf)
		if !bytes.Equal(buf[:n], zeros[:n]) {
			if _, err := f.WriteAt(buf[:n], size); err != nil {
				return nil, 0, fmt.Errorf("write spool file in %s: %w", dir, err)
			}
		}
		size += int64(n)
		if rerr == io.EOF || rerr == io.ErrUnexpectedEOF {
			break
		}
		if rerr != nil {
			return nil, 0, rerr
		}
	}
	if err := f.Truncate(size); err != nil {
		return nil, 0, fmt.Errorf("write spool file in %s: %w", dir, err)
	}
	return f, size, nil
}

// leavesRoom refuses to go on writing where little is free.
func leavesRoom(f *os.File, dir string) error {
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return fmt.Errorf("free space of %s: %w", dir, err)
	}
	free, total := st.Bavail*uint64(st.Bsize), st.Blocks*uint64(st.Bsize)
	if free < min(spoolReserve, total/20)+spoolLook {
		return fmt.Errorf("spool file in %s: %d MiB free: %w", dir, free>>20, ErrNoSpace)
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
