package layer

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// The files of the run directory hold a few bytes and are read and written while somebody waits. An os.File, which
// asks the kernel whether it can be polled, would take three times as many system calls.

// readSmall reads a file of at most 64 bytes.
func readSmall(path string) ([]byte, error) {
	fd, err := openSmall(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	b := make([]byte, 64)
	n, err := uninterrupted(func() (int, error) { return unix.Read(fd, b) })
	if err != nil {
		return nil, &os.PathError{Op: "read", Path: path, Err: err}
	}
	return b[:n], nil
}

// writeSmall makes or replaces a file of few bytes, which is not durable.
func writeSmall(path string, text []byte) error {
	fd, err := openSmall(path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC)
	if err != nil {
		return err
	}
	n, err := 0, error(nil)
	if len(text) > 0 {
		n, err = uninterrupted(func() (int, error) { return unix.Write(fd, text) })
	}
	if err == nil && n < len(text) {
		err = unix.ENOSPC
	}
	if cerr := unix.Close(fd); err == nil {
		err = cerr
	}
	if err != nil {
		return &os.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}

func openSmall(path string, flags int) (int, error) {
	fd, err := uninterrupted(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC, 0o600) })
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// uninterrupted repeats what a signal has interrupted.
func uninterrupted(fn func() (int, error)) (int, error) {
	for {
		n, err := fn()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
