package thinpool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"
)

// blkDiscard is BLKDISCARD, _IO(0x12, 119).
const blkDiscard = 0x1277

// discardStep bounds a single call, which nothing interrupts.
const discardStep = 1 << 30

// Discard frees a range of a block device, which must be a multiple of its
// logical block size: on a thin device, the pool's blocks that lie wholly in
// it. The context is looked at once for each GiB. The error wraps the errno;
// EOPNOTSUPP says that the device cannot discard.
func Discard(ctx context.Context, f *os.File, offset, length uint64) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("thinpool: discard on %s: %w", f.Name(), err)
	}
	for length > 0 {
		n := min(length, discardStep)
		if err := discardOnce(ctx, conn, offset, n); err != nil {
			return fmt.Errorf("thinpool: discard %d bytes at %d on %s: %w", n, offset, f.Name(), err)
		}
		offset, length = offset+n, length-n
	}
	return nil
}

func discardOnce(ctx context.Context, conn syscall.RawConn, offset, length uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	var result error
	err := conn.Control(func(fd uintptr) { result = discard(fd, [2]uint64{offset, length}) })
	return errors.Join(err, result)
}

func discard(fd uintptr, byteRange [2]uint64) error {
	for {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, fd, blkDiscard, uintptr(unsafe.Pointer(&byteRange)))
		runtime.KeepAlive(&byteRange)
		switch errno {
		case 0:
			return nil
		case syscall.EINTR:
		default:
			return errno
		}
	}
}
