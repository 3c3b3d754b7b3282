package fsutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	losetup "github.com/freddierice/go-losetup/v2"
	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Detach detaches a loop device and waits until it is: the kernel does it when the last who has it open closes
// it. When ctx ends first, the error is errs.ErrBusy and the device goes by itself later. One that is not
// attached is no error.
//
// Nobody may attach a file to the same number meanwhile: who detaches holds the lock that attaching takes.
func Detach(ctx context.Context, number int) error {
	const what = "detach"
	path := loopPath(number)
	if _, attached, err := backingFile(number); err != nil || !attached {
		return err
	}
	// Listen before detaching, so that no event is missed.
	events, err := listenUevents()
	if err != nil {
		return fail(what, path, err)
	}
	defer events.Close()
	before, attached, err := LoopOf(number)
	if err != nil || !attached {
		return err
	}
	if err := losetup.New(uint64(number), 0).Detach(); err != nil {
		if _, attached, serr := backingFile(number); serr == nil && !attached {
			return nil
		}
		return fail(what, path, err)
	}
	for {
		now, attached, err := LoopOf(number)
		switch {
		case err != nil:
			return err
		case !attached, now.Dev != before.Dev, now.Inode != before.Inode:
			return nil
		}
		if err := events.wait(ctx); err != nil {
			if context.Cause(ctx) == nil {
				return fail(what, path, err)
			}
			err = fmt.Errorf("%s %s: somebody has it open: %w: %w", what, path, errs.ErrBusy, err)
			return errs.WithHint(err, "it goes when its last user closes it")
		}
	}
}

// uevents is a socket on which the kernel tells about devices.
type uevents struct{ f *os.File }

// kernelGroup is the multicast group of the kernel's own events; udev sends to another.
const kernelGroup = 1

func listenUevents() (*uevents, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return nil, fmt.Errorf("listen to device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: kernelGroup}); err != nil {
		return nil, errors.Join(fmt.Errorf("listen to device events: %w", err), unix.Close(fd))
	}
	return &uevents{os.NewFile(uintptr(fd), "uevents")}, nil
}

func (u *uevents) Close() error { return u.f.Close() }

// wait returns after the next event, or with ctx's cause. Events that were lost count as one.
func (u *uevents) wait(ctx context.Context) error {
	conn, err := u.f.SyscallConn()
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = u.f.SetReadDeadline(unixEpoch) })
	defer stop()
	var buf [8 << 10]byte
	var rerr error
	err = conn.Read(func(fd uintptr) bool {
		_, _, rerr = unix.Recvfrom(int(fd), buf[:], 0)
		return rerr != unix.EAGAIN && rerr != unix.EINTR
	})
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if errors.Is(rerr, unix.ENOBUFS) {
		return nil
	}
	return errors.Join(err, rerr)
}

// unixEpoch is a deadline that has passed.
var unixEpoch = time.Unix(0, 1)
