package fsutil

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// WatchMounts calls changed once, and then each time that something has been mounted or unmounted in the mount namespace of this process, until ctx
// ends, which is no error. Several changes may be one call. It takes a thread, which waits in poll(2).
func WatchMounts(ctx context.Context, changed func()) error {
	table, err := unix.Open("/proc/self/mountinfo", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer unix.Close(table)
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return fmt.Errorf("watch mounts: %w", err)
	}
	defer unix.Close(wake)
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		_, _ = unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer func() {
		if !stop() {
			<-done // it has the descriptor
		}
	}()
	for ctx.Err() == nil {
		changed()
		fds := []unix.PollFd{{Fd: int32(table), Events: unix.POLLPRI}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("watch mounts: %w", err)
		}
	}
	return nil
}
