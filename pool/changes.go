package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/pause"
)

// burst is how long Changes waits for what belongs together, as one operation writes records several times and makes several devices; calm is how long nothing
// happens before it tells, and patience how long it waits for that.
const (
	burst    = 50 * time.Millisecond
	calm     = 2 * burst
	patience = time.Second
)

// Changes tells that something may have changed in the records or in the device-mapper, by whomever: the channel gets a value, several
// changes may be one, and most of them mean nothing to the receiver. He is told when nothing has changed for a moment, so that he looks once for many and is in nobody's way; where there
// is no such moment, within little more than a second. What happens after Changes has returned is not missed. The channel is
// closed when ctx ends, or the records are not there any more.
func (p *Pool) Changes(ctx context.Context) (<-chan struct{}, error) {
	ctx, cancel := context.WithCancel(ctx)
	written, err := p.recordsWritten(ctx)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("watch the records of pool %q: %w", p.files.name, err)
	}
	devices, err := p.dm.EventsWithin(ctx, burst)
	if err != nil {
		cancel()
		return nil, kernelError(err)
	}
	changes := make(chan struct{}, 1)
	go func() {
		defer close(changes)
		defer func() {
			cancel()
			for range written { // until the reader has ended
			}
			for range devices {
			}
		}()
		for {
			ok := true
			select {
			case _, ok = <-written:
			case _, ok = <-devices:
			}
			if !ok || !becalmed(written, devices) {
				return
			}
			signal(changes)
		}
	}()
	return changes, nil
}

// becalmed waits until nothing changes for a moment, or patience has ended. It is false where nothing will be told any more.
func becalmed(written, devices <-chan struct{}) bool {
	enough, quiet := time.NewTimer(patience), time.NewTimer(calm)
	defer enough.Stop()
	defer quiet.Stop()
	for {
		ok := true
		select {
		case _, ok = <-written:
		case _, ok = <-devices:
		case <-enough.C:
			return true
		case <-quiet.C:
			return true
		}
		if !ok {
			return false
		}
		quiet.Reset(calm)
	}
}

// recordsWritten tells that somebody has written to the record store, or has put another in its place, a burst later. The channel is closed when ctx ends, or when
// there is no store.
func (p *Pool) recordsWritten(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, err
	}
	// With O_NONBLOCK, os waits for it without a thread, and a deadline ends the wait.
	f := os.NewFile(uintptr(fd), "inotify")
	// A store that is replaced stays open for whoever has read it, so that the end of its name is an event of its own: a change of its attributes.
	const what = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF
	if _, err := unix.InotifyAddWatch(fd, p.files.store(), what); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	written := make(chan struct{}, 1)
	go func() {
		defer close(written)
		defer f.Close()
		stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		b := make([]byte, 4096)
		for {
			if _, err := f.Read(b); err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
			if pause.For(ctx, burst) != nil {
				return
			}
			// What has come meanwhile; of what is the same as the event before, the kernel keeps one.
			_, _ = unix.Read(fd, b)
			if _, err := unix.InotifyAddWatch(fd, p.files.store(), what); err != nil { // the one that is there now
				return
			}
			signal(written)
		}
	}()
	return written, nil
}

func signal(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
