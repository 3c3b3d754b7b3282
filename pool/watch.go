package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/metadata"
)

// EnterRunning is Enter where the pool runs; where it does not, it starts nothing and returns nil.
func (p *Pool) EnterRunning(ctx context.Context) (*Session, error) {
	s, err := p.Hold(ctx)
	if err != nil {
		return nil, err
	}
	if err = s.look(); err == nil {
		err = s.rouse(ctx)
	}
	if err == nil {
		return s, nil
	}
	s.Exit()
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil, nil
	}
	return nil, kernelError(err)
}

// LockedByOthers tells whether somebody else has the lock of a thin id.
func (s *Session) LockedByOthers(id metadata.ThinID) (bool, error) {
	held, err := s.holder.Held(at(int64(id)))
	if err != nil {
		return false, fmt.Errorf("look at the lock of thin id %d: %w", id, err)
	}
	return held, nil
}

// Departures tells that somebody has ended his use of the pool's locks, or died with them: the kernel says so of the lock file
// when it is closed, just before it drops the locks. What comes faster than it is received becomes one. The channel is closed
// when ctx ends, or when the lock file is not there any more: the pool was destroyed, or the run directory cleaned.
func (p *Pool) Departures(ctx context.Context) (<-chan struct{}, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the locks of pool %q: %w", p.files.name, err)
	}
	f := os.NewFile(uintptr(fd), "inotify")
	// A removed file is open for whoever has its locks, so that the end of its name is an event of its own: a change of its attributes.
	if _, err := unix.InotifyAddWatch(fd, p.locks.Path(), unix.IN_CLOSE_WRITE|unix.IN_ATTRIB|unix.IN_MOVE_SELF); err != nil {
		err = fmt.Errorf("watch the locks of pool %q: %w", p.files.name, &os.PathError{Op: "watch", Path: p.locks.Path(), Err: err})
		return nil, errors.Join(err, f.Close())
	}
	ch := make(chan struct{}, 1)
	go func() {
		defer close(ch)
		defer f.Close()
		stop := context.AfterFunc(ctx, func() { _ = f.SetReadDeadline(time.Unix(1, 0)) })
		defer stop()
		b := make([]byte, 4096)
		for {
			if _, err := f.Read(b); err != nil || p.lockFileGone() {
				return
			}
			select {
			case ch <- struct{}{}:
			default:
			}
		}
	}()
	return ch, nil
}

func (p *Pool) lockFileGone() bool {
	_, err := os.Lstat(p.locks.Path())
	return errors.Is(err, os.ErrNotExist)
}
