package lockfile_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
)

var one = lockfile.Range{Start: 100, Len: 1}

// The test binary is also the other process: "hold PATH" locks and says so, "cancel PATH" tests a cancelled wait.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "part" {
		os.Exit(part(os.Args[2], os.Args[3]))
	}
	os.Exit(m.Run())
}

func part(name, path string) int {
	h, err := lockfile.Open(path).Holder(context.Background())
	if err == nil && name == "hold" {
		err = h.Lock(context.Background(), one, lockfile.Exclusive)
	}
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if name == "cancel" {
		ctx, cancel := context.WithCancel(context.Background())
		go func() {
			_, _ = io.ReadAll(os.Stdin)
			cancel()
		}()
		fmt.Println("waiting")
		fmt.Println(errors.Is(h.Lock(ctx, one, lockfile.Exclusive), context.Canceled))
		return 0
	}
	fmt.Println("locked")
	_, _ = io.ReadAll(os.Stdin)
	return 0
}

func holder(t *testing.T, f *lockfile.File) *lockfile.Holder {
	t.Helper()
	h, err := f.Holder(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func newFile(t *testing.T) *lockfile.File {
	t.Helper()
	return lockfile.Open(filepath.Join(t.TempDir(), "lock"))
}

func mustLock(t *testing.T, h *lockfile.Holder, r lockfile.Range, m lockfile.Mode) {
	t.Helper()
	if err := h.Lock(t.Context(), r, m); err != nil {
		t.Fatal(err)
	}
}

func try(t *testing.T, h *lockfile.Holder, r lockfile.Range, m lockfile.Mode) bool {
	t.Helper()
	ok, err := h.TryLock(r, m)
	if err != nil {
		t.Fatal(err)
	}
	return ok
}

// waiters counts the requests for the file's locks that the kernel has queued.
func waiters(t *testing.T, path string) int {
	t.Helper()
	fi, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, line := range strings.Split(string(locks), "\n") {
		if strings.Contains(line, "->") && strings.Contains(line, fmt.Sprintf(":%d ", fi.Sys().(*syscall.Stat_t).Ino)) {
			n++
		}
	}
	return n
}

// awaitWaiters returns when the kernel has queued n requests.
func awaitWaiters(t *testing.T, path string, n int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for waiters(t, path) != n {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("nobody waits")
		}
	}
}

func TestModes(t *testing.T) {
	for _, tc := range []struct {
		first, second lockfile.Mode
		together      bool
	}{
		{lockfile.Shared, lockfile.Shared, true},
		{lockfile.Shared, lockfile.Exclusive, false},
		{lockfile.Exclusive, lockfile.Shared, false},
		{lockfile.Exclusive, lockfile.Exclusive, false},
	} {
		t.Run(fmt.Sprintf("%s-%s", tc.first, tc.second), func(t *testing.T) {
			f := newFile(t)
			a, b := holder(t, f), holder(t, f)
			mustLock(t, a, one, tc.first)
			if got := try(t, b, one, tc.second); got != tc.together {
				t.Errorf("together: %v", got)
			}
			if held, err := b.Held(one); err != nil || !held {
				t.Errorf("b sees a lock of a's: %v, %v", held, err)
			}
			if !try(t, b, lockfile.Range{Start: 101, Len: 5}, lockfile.Exclusive) {
				t.Error("the next byte is locked too")
			}
		})
	}
}

func TestHolderSeesNotItself(t *testing.T) {
	a := holder(t, newFile(t))
	mustLock(t, a, one, lockfile.Exclusive)
	if held, err := a.Held(one); err != nil || held {
		t.Errorf("%v, %v", held, err)
	}
}

// Whoever watches for the end of locks hears nothing of one who only looks at them.
func TestFileHeld(t *testing.T) {
	f := lockfile.Open(filepath.Join(t.TempDir(), "locks"))
	if held, err := f.Held(one); held || err != nil {
		t.Errorf("without a file: held %v, %v", held, err)
	}
	if _, err := os.Lstat(f.Path()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("looking has made the file: %v", err)
	}
	h, err := f.Holder(context.Background())
	if err == nil {
		err = h.Lock(context.Background(), one, lockfile.Exclusive)
	}
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, f.Path(), unix.IN_CLOSE_WRITE|unix.IN_ATTRIB|unix.IN_MOVE_SELF); err != nil {
		t.Fatal(err)
	}
	if held, err := f.Held(one); !held || err != nil {
		t.Errorf("locked: held %v, %v", held, err)
	}
	event := make([]byte, 4096)
	if _, err := unix.Read(fd, event); !errors.Is(err, unix.EAGAIN) {
		t.Errorf("looking was told of: %v", err)
	}
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Read(fd, event); err != nil {
		t.Errorf("the end of the lock was not told of: %v", err)
	}
	if held, err := f.Held(one); held || err != nil {
		t.Errorf("unlocked: held %v, %v", held, err)
	}
}

func TestMisuse(t *testing.T) {
	a := holder(t, newFile(t))
	mustLock(t, a, lockfile.Range{Start: 10, Len: 10}, lockfile.Shared)
	for name, err := range map[string]error{
		"upgrade":  a.Lock(t.Context(), lockfile.Range{Start: 10, Len: 10}, lockfile.Exclusive),
		"overlap":  a.Lock(t.Context(), lockfile.Range{Start: 19, Len: 10}, lockfile.Shared),
		"empty":    a.Lock(t.Context(), lockfile.Range{Start: 30}, lockfile.Shared),
		"negative": a.Lock(t.Context(), lockfile.Range{Start: -1, Len: 1}, lockfile.Shared),
		"overflow": a.Lock(t.Context(), lockfile.Range{Start: 1 << 62, Len: 1 << 62}, lockfile.Shared),
		"mode":     a.Lock(t.Context(), lockfile.Range{Start: 30, Len: 1}, 17),
		"not held": a.Unlock(lockfile.Range{Start: 30, Len: 1}),
		"part":     a.Unlock(lockfile.Range{Start: 10, Len: 1}),
	} {
		if !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := a.Lock(t.Context(), one, lockfile.Shared); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("closed: %v", err)
	}
	if _, err := a.Held(one); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("closed: %v", err)
	}
}

func TestModeOfFile(t *testing.T) {
	f := newFile(t)
	holder(t, f)
	fi, err := os.Stat(f.Path())
	if err != nil || fi.Mode().Perm() != 0o600 || fi.Size() != 0 {
		t.Errorf("%v, %v", fi, err)
	}
	if _, err := lockfile.Open(f.Path() + "/x").Holder(t.Context()); err == nil {
		t.Error("a file is no directory")
	}
}

// The run directory may be cleaned under a process that lives on.
func TestDirectoryIsMadeAgain(t *testing.T) {
	f := lockfile.Open(filepath.Join(t.TempDir(), "none", "lock"))
	h := holder(t, f)
	mustLock(t, h, one, lockfile.Exclusive)
	if err := h.Check(); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(filepath.Dir(f.Path())); err != nil {
		t.Fatal(err)
	}
	if err := h.Check(); !errors.Is(err, lockfile.ErrReplaced) {
		t.Errorf("locks of a removed file: %v", err)
	}
	mustLock(t, holder(t, f), one, lockfile.Exclusive)
}

func TestLockWaits(t *testing.T) {
	f := newFile(t)
	a, b := holder(t, f), holder(t, f)
	mustLock(t, a, one, lockfile.Exclusive)
	got := make(chan error, 1)
	go func() { got <- b.Lock(t.Context(), one, lockfile.Exclusive) }()
	awaitWaiters(t, f.Path(), 1)
	if err := a.Unlock(one); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if try(t, a, one, lockfile.Shared) {
		t.Error("b has not got it")
	}
}

// A cancelled wait is out of the kernel's queue when Lock returns, the holder keeps what it had, and can be used.
func TestCancelledWait(t *testing.T) {
	cancelWait(t)
}

// Neither does a program spoil this that ignores or resets all signals.
func TestCancelledWaitAfterIgnore(t *testing.T) {
	signal.Ignore(syscall.Signal(53))
	cancelWait(t)
	signal.Reset(syscall.Signal(53))
	cancelWait(t)
	heard := make(chan os.Signal, 100)
	signal.Notify(heard, syscall.Signal(53))
	defer signal.Stop(heard)
	cancelWait(t)
}

func cancelWait(t *testing.T) {
	t.Helper()
	f := newFile(t)
	a, b, c := holder(t, f), holder(t, f), holder(t, f)
	mustLock(t, a, one, lockfile.Exclusive)
	other := lockfile.Range{Start: 7, Len: 2}
	mustLock(t, b, other, lockfile.Exclusive)
	why := errors.New("for a test")
	ctx, cancel := context.WithCancelCause(t.Context())
	got := make(chan error, 1)
	go func() { got <- b.Lock(ctx, one, lockfile.Exclusive) }()
	awaitWaiters(t, f.Path(), 1)
	cancel(why)
	if err := <-got; !errors.Is(err, why) {
		t.Fatalf("got %v", err)
	}
	if n := waiters(t, f.Path()); n != 0 {
		t.Errorf("%d requests are left in the queue", n)
	}
	if try(t, c, other, lockfile.Shared) {
		t.Error("b has lost its other lock")
	}
	if err := a.Unlock(one); err != nil {
		t.Fatal(err)
	}
	if !try(t, c, one, lockfile.Exclusive) {
		t.Error("something of b's wait holds the lock")
	}
	if err := c.Unlock(one); err != nil {
		t.Fatal(err)
	}
	mustLock(t, b, one, lockfile.Exclusive)
}

func TestCancelledBefore(t *testing.T) {
	f := newFile(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := f.Holder(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	a, b := holder(t, f), holder(t, f)
	mustLock(t, a, one, lockfile.Exclusive)
	if err := b.Lock(ctx, one, lockfile.Exclusive); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// Cancelling and getting the lock race: whoever wins, the books agree with the kernel.
func TestCancelRacesWithUnlock(t *testing.T) {
	f := newFile(t)
	a, b, c := holder(t, f), holder(t, f), holder(t, f)
	var got, lost int
	for range 300 {
		mustLock(t, a, one, lockfile.Exclusive)
		ctx, cancel := context.WithCancel(t.Context())
		result := make(chan error, 1)
		go func() { result <- b.Lock(ctx, one, lockfile.Exclusive) }()
		for range rand.IntN(20) {
			runtime.Gosched()
		}
		go cancel()
		for range rand.IntN(20) {
			runtime.Gosched()
		}
		if err := a.Unlock(one); err != nil {
			t.Fatal(err)
		}
		err := <-result
		free := try(t, c, one, lockfile.Exclusive)
		switch {
		case err == nil && free:
			t.Fatal("b was told that it has the lock, and c has it")
		case err == nil:
			got++
			if err := b.Unlock(one); err != nil {
				t.Fatal(err)
			}
		case !errors.Is(err, context.Canceled):
			t.Fatal(err)
		case !free:
			t.Fatal("b's cancelled wait left a lock")
		default:
			lost++
			if err := c.Unlock(one); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
	}
	t.Logf("%d got it, %d were cancelled", got, lost)
}

// Many holders, random ranges, random deadlines: never two where there may be one, and nobody is forgotten.
func TestStress(t *testing.T) {
	const bytes, workers, rounds = 8, 12, 150
	f := newFile(t)
	var exclusive, shared [bytes]atomic.Int32
	var wg sync.WaitGroup
	var got, gaveUp atomic.Int32
	for range workers {
		h := holder(t, f)
		wg.Go(func() {
			for range rounds {
				r := lockfile.Range{Start: rand.Int64N(bytes - 1), Len: 1 + rand.Int64N(2)}
				mode := lockfile.Shared
				if rand.IntN(2) == 0 {
					mode = lockfile.Exclusive
				}
				ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rand.IntN(3000))*time.Microsecond)
				err := h.Lock(ctx, r, mode)
				cancel()
				if errors.Is(err, context.DeadlineExceeded) {
					gaveUp.Add(1)
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				got.Add(1)
				for i := r.Start; i < r.Start+r.Len; i++ {
					if mode == lockfile.Exclusive {
						if exclusive[i].Add(1) != 1 || shared[i].Load() != 0 {
							t.Errorf("byte %d is not exclusive", i)
						}
					} else if shared[i].Add(1); exclusive[i].Load() != 0 {
						t.Errorf("byte %d is shared with an exclusive owner", i)
					}
				}
				runtime.Gosched()
				for i := r.Start; i < r.Start+r.Len; i++ {
					if mode == lockfile.Exclusive {
						exclusive[i].Add(-1)
					} else {
						shared[i].Add(-1)
					}
				}
				if err := h.Unlock(r); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got.Load() == 0 {
		t.Error("nobody ever got a lock")
	}
	t.Logf("%d locks, %d deadlines", got.Load(), gaveUp.Load())
	if !try(t, holder(t, f), lockfile.Range{Start: 0, Len: bytes + 2}, lockfile.Exclusive) {
		t.Error("a lock was left")
	}
}

func startPart(t *testing.T, name, path string) (*exec.Cmd, io.WriteCloser, *bufio.Scanner) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "part", name, path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd, in, bufio.NewScanner(out)
}

func TestKilledHolder(t *testing.T) {
	f := newFile(t)
	child, _, said := startPart(t, "hold", f.Path())
	if !said.Scan() || said.Text() != "locked" {
		t.Fatalf("the other process says %q", said.Text())
	}
	a := holder(t, f)
	if try(t, a, one, lockfile.Shared) {
		t.Fatal("two processes have the lock")
	}
	got := make(chan error, 1)
	go func() { got <- a.Lock(t.Context(), one, lockfile.Exclusive) }()
	awaitWaiters(t, f.Path(), 1)
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// A process that inherited a signal mask in which everything is blocked can cancel its waits too.
func TestCancelledWaitUnderBlockedSignals(t *testing.T) {
	f := newFile(t)
	mustLock(t, holder(t, f), one, lockfile.Exclusive)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var all, old unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &old); err != nil {
		t.Fatal(err)
	}
	_, in, said := startPart(t, "cancel", f.Path())
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil); err != nil {
		t.Fatal(err)
	}
	if !said.Scan() || said.Text() != "waiting" {
		t.Fatalf("the other process says %q", said.Text())
	}
	awaitWaiters(t, f.Path(), 1)
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	if !said.Scan() || said.Text() != "true" {
		t.Errorf("the other process says %q", said.Text())
	}
}

func TestReplacedFile(t *testing.T) {
	f := newFile(t)
	a, b, old := holder(t, f), holder(t, f), holder(t, f)
	second, third := lockfile.Range{Start: 5, Len: 1}, lockfile.Range{Start: 6, Len: 1}
	mustLock(t, a, one, lockfile.Exclusive)
	mustLock(t, old, second, lockfile.Exclusive)
	if err := os.Remove(f.Path()); err != nil {
		t.Fatal(err)
	}
	// b opened the old file, but must not lock it.
	mustLock(t, b, one, lockfile.Exclusive)
	c := holder(t, f)
	if try(t, c, one, lockfile.Exclusive) {
		t.Error("b and c have locked different files")
	}
	// a has settled for the old file, and does not wait for anybody there.
	mustLock(t, a, third, lockfile.Shared)
	if err := a.Lock(t.Context(), second, lockfile.Shared); !errors.Is(err, lockfile.ErrReplaced) || !errors.Is(err, errs.ErrDamaged) {
		t.Errorf("got %v", err)
	}
	// Without locks it goes over to the new one.
	for _, r := range []lockfile.Range{one, third} {
		if err := a.Unlock(r); err != nil {
			t.Fatal(err)
		}
	}
	if try(t, a, one, lockfile.Shared) {
		t.Error("a and b have locked different files")
	}
	mustLock(t, a, second, lockfile.Exclusive)
	if held, err := c.Held(second); err != nil || !held {
		t.Errorf("c does not see a's new lock: %v", err)
	}
}

func TestContent(t *testing.T) {
	f := newFile(t)
	a, b := holder(t, f), holder(t, f)
	mustLock(t, a, one, lockfile.Exclusive)
	if n, err := a.ReadAt(make([]byte, 8), 0); n != 0 || err != io.EOF {
		t.Errorf("empty: %d, %v", n, err)
	}
	if n, err := a.WriteAt([]byte("cursor 7"), 16); n != 8 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	got := make([]byte, 8)
	if n, err := b.ReadAt(got, 16); n != 8 || err != nil || string(got) != "cursor 7" {
		t.Errorf("%q, %d, %v", got, n, err)
	}
	if n, err := b.ReadAt(got, 20); n != 4 || err != io.EOF || string(got[:4]) != "or 7" {
		t.Errorf("%q, %d, %v", got[:n], n, err)
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := a.ReadAt(got, 0); err == nil {
		t.Error("a closed holder was read")
	}
	if _, err := a.WriteAt(got, 0); err == nil {
		t.Error("a closed holder was written to")
	}
}

func TestFileReplacedWhileWaiting(t *testing.T) {
	f := newFile(t)
	a, b := holder(t, f), holder(t, f)
	mustLock(t, a, one, lockfile.Exclusive)
	got := make(chan error, 1)
	go func() { got <- b.Lock(t.Context(), one, lockfile.Exclusive) }()
	awaitWaiters(t, f.Path(), 1)
	if err := os.Remove(f.Path()); err != nil {
		t.Fatal(err)
	}
	c := holder(t, f) // creates the new one
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
	if try(t, c, one, lockfile.Shared) {
		t.Error("b and c have locked different files")
	}
}

func TestClosedOnExec(t *testing.T) {
	f := newFile(t)
	mustLock(t, holder(t, f), one, lockfile.Exclusive)
	child, in, said := startPart(t, "hold", filepath.Join(t.TempDir(), "another"))
	if !said.Scan() {
		t.Fatal("the other process says nothing")
	}
	dir := fmt.Sprintf("/proc/%d/fd", child.Process.Pid)
	fds, err := os.ReadDir(dir)
	if err != nil || len(fds) < 3 {
		t.Fatalf("%d descriptors, %v", len(fds), err)
	}
	for _, fd := range fds {
		if target, err := os.Readlink(filepath.Join(dir, fd.Name())); err == nil && target == f.Path() {
			t.Errorf("a child has descriptor %s of the lock file", fd.Name())
		}
	}
	_ = in.Close()
}

func BenchmarkLockUnlock(b *testing.B) {
	h, err := lockfile.Open(filepath.Join(b.TempDir(), "lock")).Holder(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	for b.Loop() {
		if err := h.Lock(b.Context(), one, lockfile.Exclusive); err != nil {
			b.Fatal(err)
		}
		if err := h.Unlock(one); err != nil {
			b.Fatal(err)
		}
	}
}
