// Package socket makes the Unix sockets of daemons: private from the first moment, never another daemon's, and not hindered by what a dead one left.
package socket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// firstInherited is the first descriptor that systemd passes on (sd_listen_fds(3)).
const firstInherited = 3

// maxPath is the longest path of a socket: sun_path has 108 bytes, with a zero at the end (unix(7)).
const maxPath = 107

// Listener is a socket that only its owner's user can connect to. Close removes it.
type Listener struct {
	net.Listener
	path string
	lock *os.File // nil where systemd has the socket
	made unix.Stat_t

	once sync.Once
	err  error
}

// Listen makes a socket, or takes the one that systemd has passed on for that path. ErrBusy says that another daemon has it, ErrExists that something else
// lies there, ErrInvalid that others than its owner could put another one in its place, or could connect to the one of systemd.
func Listen(ctx context.Context, path string) (*Listener, error) {
	l, err := listen(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(ctx context.Context, path string) (*Listener, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if l, err := inherited(abs); l != nil || err != nil {
		return l, err
	}
	if len(abs) > maxPath {
		err := fmt.Errorf("its path has %d bytes, of which the kernel takes %d: %w", len(abs), maxPath, errs.ErrInvalid)
		return nil, errs.WithHint(err, "name a shorter one, such as /run/dmlayer/"+filepath.Base(abs))
	}
	if err := checkFolder(filepath.Dir(abs)); err != nil {
		return nil, err
	}
	lock, err := lockBeside(abs)
	if err != nil {
		return nil, err
	}
	l, err := listenLocked(ctx, abs)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	l.lock = lock
	return l, nil
}

// checkFolder makes the folder where there is none, and refuses one in which others can replace files, or which they can replace.
func checkFolder(dir string) error {
	there := dir // as much of it as is there
	for _, err := os.Lstat(there); errors.Is(err, os.ErrNotExist); _, err = os.Lstat(there) {
		there = filepath.Dir(there)
	}
	place, err := filepath.EvalSymlinks(there)
	for above := ""; err == nil && place != above; place = filepath.Dir(place) {
		err, above = checkOwn(place), place
	}
	if err != nil {
		return err
	}
	return os.MkdirAll(dir, 0o711)
}

// checkOwn refuses a folder in which others can replace what is not theirs.
func checkOwn(dir string) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	sticky := fi.Mode()&os.ModeSticky != 0
	if fi.Mode().Perm()&0o022 != 0 && !sticky || !ours(fi) {
		err := fmt.Errorf("others can write to %s (mode %v): %w", dir, fi.Mode(), errs.ErrInvalid)
		return errs.WithHint(err, "name a folder that only root can write to, such as /run/dmlayer")
	}
	return nil
}

// ours tells whether a file is root's, or of the user that this process acts for.
func ours(fi os.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return !ok || st.Uid == 0 || int(st.Uid) == os.Geteuid()
}

// lockBeside takes a lock file, which the kernel gives back when this process dies. The file stays.
func lockBeside(path string) (*os.File, error) {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !ours(fi) {
		err = errs.WithHint(fmt.Errorf("%s is another user's: %w", f.Name(), errs.ErrInvalid), "remove it, or name a folder that only root can write to, such as /run/dmlayer")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errs.WithHint(fmt.Errorf("another daemon has it: %w", errs.ErrBusy), "name another socket, or stop that daemon")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// listenLocked makes the socket. Nobody else who goes by the lock does so at the same time.
func listenLocked(ctx context.Context, path string) (*Listener, error) {
	if err := clearStale(ctx, path); err != nil {
		return nil, err
	}
	// The mode of the unbound socket becomes that of the file: it is private as soon as it is there.
	private := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		return errors.Join(c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o600) }), err)
	}}
	inner, err := private.Listen(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	inner.(*net.UnixListener).SetUnlinkOnClose(false)
	l := &Listener{Listener: inner, path: path}
	if err := unix.Lstat(path, &l.made); err != nil {
		return nil, errors.Join(err, inner.Close())
	}
	return l, nil
}

// clearStale removes the socket of a daemon that died.
func clearStale(ctx context.Context, path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.Mode().Type() != os.ModeSocket {
		return errs.WithHint(fmt.Errorf("something else than a socket is there: %w", errs.ErrExists), "remove it, or name another path")
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close()
		return errs.WithHint(fmt.Errorf("another daemon answers there: %w", errs.ErrBusy), "name another socket, or stop that daemon")
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}

// inherited returns the listener that systemd has passed on for a path, nil for none.
func inherited(path string) (*Listener, error) {
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	count, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return nil, fmt.Errorf("LISTEN_FDS is no number: %w", errs.ErrInvalid)
	}
	for fd := firstInherited; fd < firstInherited+count; fd++ {
		unix.CloseOnExec(fd) // also of one that nobody asks for: programs that are started get none
		name, err := unix.Getsockname(fd)
		if err != nil {
			continue
		}
		if u, ok := name.(*unix.SockaddrUnix); !ok || u.Name != path {
			continue
		}
		if err := checkInherited(path); err != nil {
			return nil, err
		}
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		f := os.NewFile(uintptr(dup), path)
		inner, err := net.FileListener(f)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, err
		}
		if u, ok := inner.(*net.UnixListener); ok {
			u.SetUnlinkOnClose(false)
		}
		return &Listener{Listener: inner, path: path}, nil
	}
	return nil, nil
}

// checkInherited refuses a socket to which everybody can connect, as systemd makes them unless its unit says otherwise: whoever connects is taken for root. A user or
// group of the unit's is let in.
func checkInherited(path string) error {
	fi, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil // nobody can connect
	}
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o002 != 0 {
		err := fmt.Errorf("others can connect to the socket that systemd has passed on (mode %v): %w", fi.Mode().Perm(), errs.ErrInvalid)
		return errs.WithHint(err, "write SocketMode=0600 into its .socket unit, then systemctl daemon-reload, and restart that unit")
	}
	return checkFolder(filepath.Dir(path))
}

// Close ends the listening. The socket's file goes with it, unless systemd has made it or it is another's by now. It may be called more
// than once.
func (l *Listener) Close() error {
	l.once.Do(func() {
		if l.lock == nil {
			l.err = l.Listener.Close()
			return
		}
		var now unix.Stat_t
		if unix.Lstat(l.path, &now) == nil && now.Dev == l.made.Dev && now.Ino == l.made.Ino {
			l.err = os.Remove(l.path)
		}
		l.err = errors.Join(l.err, l.Listener.Close(), l.lock.Close())
	})
	return l.err
}
