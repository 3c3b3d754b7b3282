package socket_test

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/socket"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func folder(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func listen(t *testing.T, path string) *socket.Listener {
	t.Helper()
	l, err := socket.Listen(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func TestPrivateAndRemoved(t *testing.T) {
	path := filepath.Join(folder(t), "s.sock")
	old := unix.Umask(0)
	defer unix.Umask(old)
	l := listen(t, path)
	fi, err := os.Lstat(path)
	if err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("socket is %v, %v", fi.Mode(), err)
	}
	if _, err := socket.Listen(t.Context(), path); !errors.Is(err, errs.ErrBusy) || errs.Hint(err) == "" {
		t.Errorf("a second daemon: %v", err)
	}
	for range 2 {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	_ = listen(t, path).Close()
}

func TestStaleSocket(t *testing.T) {
	path := filepath.Join(folder(t), "s.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), path); !errors.Is(err, errs.ErrBusy) {
		t.Errorf("somebody who takes no lock listens: %v", err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	l := listen(t, path)
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	// Somebody has put his own in its place: that one stays.
	if err := errors.Join(os.Remove(path), os.WriteFile(path, nil, 0o600), l.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestRefused(t *testing.T) {
	dir := folder(t)
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), file); !errors.Is(err, errs.ErrExists) {
		t.Errorf("a file is there: %v", err)
	}
	if text, _ := os.ReadFile(file); string(text) != "kept" {
		t.Error("the file is gone")
	}
	open := filepath.Join(dir, "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), filepath.Join(open, "s")); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a folder that others can write to: %v", err)
	}
	below := filepath.Join(open, "private")
	if err := os.Mkdir(below, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), filepath.Join(below, "s")); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a folder that others can replace: %v", err)
	}
	if _, err := socket.Listen(t.Context(), filepath.Join(open, "new", "s")); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a new folder that others could replace: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(open, "new")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it was made: %v", err)
	}
	long := filepath.Join(dir, "new", strings.Repeat("n", 108))
	if _, err := socket.Listen(t.Context(), long); !errors.Is(err, errs.ErrInvalid) || errs.Hint(err) == "" {
		t.Errorf("a path that is too long: %v", err)
	}
	if _, err := os.Lstat(filepath.Dir(long)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its folder was made: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if l, err := socket.Listen(ctx, filepath.Join(dir, "s")); err == nil {
		_ = l.Close()
	}
}

// A lock file of another user would keep the daemon from starting for as long as he likes.
func TestLockOfAnother(t *testing.T) {
	testenv.Need(t, testenv.Root) // to make what is another user's
	path := filepath.Join(folder(t), "s.sock")
	if err := errors.Join(os.WriteFile(path+".lock", nil, 0o600), os.Chown(path+".lock", 65534, 65534)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), path); !errors.Is(err, errs.ErrInvalid) || errs.Hint(err) == "" {
		t.Errorf("%v", err)
	}
}

// inherit passes a socket on to this process, as systemd does.
func inherit(t *testing.T, path string) (parent func() error) {
	t.Helper()
	made, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	made.SetUnlinkOnClose(false)
	f, err := made.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
	t.Setenv("LISTEN_FDS", strconv.Itoa(int(f.Fd())-2))
	return func() error { return errors.Join(made.Close(), f.Close()) }
}

// systemd makes sockets that everybody can connect to, unless told otherwise.
func TestInheritedOpen(t *testing.T) {
	path := filepath.Join(folder(t), "s.sock")
	parent := inherit(t, path)
	defer func() { _ = parent() }()
	for mode, refused := range map[os.FileMode]bool{0o600: false, 0o660: false, 0o666: true, 0o602: true, 0o777: true} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		l, err := socket.Listen(t.Context(), path)
		if refused != errors.Is(err, errs.ErrInvalid) || refused != strings.Contains(errs.Hint(err), "SocketMode=0600") {
			t.Errorf("mode %v: %v (%s)", mode, err, errs.Hint(err))
		}
		if l != nil {
			_ = l.Close()
		}
	}
	if err := errors.Join(os.Chmod(path, 0o600), os.Chmod(filepath.Dir(path), 0o777)); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.Listen(t.Context(), path); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a folder that others can write to: %v", err)
	}
}

func TestInherited(t *testing.T) {
	path := filepath.Join(folder(t), "s.sock")
	parent := inherit(t, path)
	l := listen(t, path)
	if err := parent(); err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("nobody listens on the socket that was passed on: %v", err)
	}
	_ = conn.Close()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("systemd's socket was removed: %v", err)
	}
}
