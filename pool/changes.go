package pool

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Changes tells that something may have changed in the records or in the device-mapper, by whomever: the channel gets a value, several
// changes may be one, and most of them mean nothing to the receiver. What happens after Changes has returned is not missed. The channel is
// closed when ctx ends.
func (p *Pool) Changes(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the records of pool %q: %w", p.files.name, err)
	}
	// With O_NONBLOCK, os waits for it without a thread, and closing it ends the wait.
	f := os.NewFile(uintptr(fd), "inotify")
	const what = unix.IN_MODIFY | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(fd, p.files.store(), what); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("watch the records of pool %q: %w", p.files.name, err)
	}
	ctx, cancel := context.WithCancel(ctx)
	devices, err := p.dm.Events(ctx)
	if err != nil {
		cancel()
		_ = f.Close()
		return nil, kernelError(err)
	}
	written := make(chan struct{}, 1)
	go func() {
		defer close(written)
		b := make([]byte, 4096)
		for {
			if _, err := f.Read(b); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			signal(written)
		}
	}()
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		defer func() {
			cancel()
			_ = f.Close()
			for range written { // until the reader has ended
			}
			for range devices {
			}
		}()
		for {
			ok := true
			select {
			case <-ctx.Done():
				return
			case _, ok = <-written:
			case _, ok = <-devices:
			}
			if !ok {
				return
			}
			signal(changes)
		}
	}()
	return changes, nil
}

func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
