package lockfile

import (
	"context"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// How a wait is cancelled.
//
// F_OFD_SETLKW ends early only by a signal, and the Go runtime's handlers are installed with SA_RESTART,
// which makes the kernel begin the wait again. Leaving the waiting thread behind would leave a request
// behind that takes the lock some day, and a thread for each. So one real-time signal, which nobody
// else uses, loses its SA_RESTART; its handler stays the Go runtime's, which drops a signal that nobody asked
// for. It is sent with tgkill to the waiting thread only, which is pinned, until that thread says that it has left
// the call: a signal that arrives just before the call is entered is lost, the next one is not.
//
// A program that asks os/signal for every signal sees interruptSignal when a wait is cancelled; it can ignore it.

// interruptSignal is from the middle of the real-time signals: libcs use the lowest ones.
const interruptSignal = syscall.Signal(53)

// resend is the time between signals to a thread that is about to enter the call.
const resend = time.Millisecond

var discard = make(chan os.Signal, 1)

// wait takes a lock on fd, or returns ctx's cause and has not taken it.
func wait(ctx context.Context, fd int, lk *unix.Flock_t) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return setlk(fd, unix.F_OFD_SETLKW, lk)
	}
	if err := armSignal(); err != nil {
		return err
	}
	w := &waiter{left: make(chan struct{})}
	result := make(chan error, 1)
	go func() { result <- w.lock(fd, lk) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	w.interrupt()
	if err := <-result; err != unix.EINTR {
		if err == nil {
			// The lock came before the signal did. Who cancelled does not want it any more.
			unlock := *lk
			unlock.Type = unix.F_UNLCK
			err = setlk(fd, unix.F_OFD_SETLK, &unlock)
		}
		if err != nil {
			return err
		}
	}
	return context.Cause(ctx)
}

// waiter is one thread in F_OFD_SETLKW.
type waiter struct {
	mu        sync.Mutex
	tid       int  // 0 before the thread is known
	over      bool // the thread has left the call: no more signals
	cancelled bool
	left      chan struct{}
}

func (w *waiter) lock(fd int, lk *unix.Flock_t) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	restore, err := unblockSignal()
	if err == nil {
		defer restore()
		w.mu.Lock()
		w.tid = unix.Gettid()
		w.mu.Unlock()
		for {
			if w.isCancelled() {
				err = unix.EINTR
				break
			}
			if err = unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLKW, lk); err != unix.EINTR {
				break
			}
		}
	}
	w.mu.Lock()
	w.over = true
	w.mu.Unlock()
	close(w.left)
	// A signal sent before "over" is delivered at the latest when this call returns, and thus never
	// interrupts what runs on this thread later.
	unix.Getppid()
	return err
}

func (w *waiter) isCancelled() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.cancelled
}

// interrupt makes the thread leave the call and returns when it has.
func (w *waiter) interrupt() {
	again := time.NewTicker(resend)
	defer again.Stop()
	for {
		w.mu.Lock()
		w.cancelled = true
		if w.tid != 0 && !w.over {
			_ = unix.Tgkill(unix.Getpid(), w.tid, interruptSignal)
		}
		w.mu.Unlock()
		select {
		case <-w.left:
			return
		case <-again.C:
		}
	}
}

// kernelSigaction begins as the kernel's struct sigaction does on every 64-bit architecture that Go knows but
// mips64: the handler, then the flags. The rest is carried along unread.
type kernelSigaction struct {
	handler uintptr
	flags   uintptr
	rest    [6]uintptr
}

const (
	saRestart  = 0x10000000
	sigDefault = 0
	sigIgnore  = 1
)

// armSignal takes SA_RESTART off interruptSignal. It looks every time, because the program around us may have
// called signal.Ignore or signal.Reset in the meantime.
func armSignal() error {
	var sa kernelSigaction
	if err := sigaction(nil, &sa); err != nil {
		return err
	}
	if sa.handler == sigDefault || sa.handler == sigIgnore {
		signal.Notify(discard, interruptSignal) // makes the runtime install its handler
		if err := sigaction(nil, &sa); err != nil {
			return err
		}
	}
	if sa.flags&saRestart == 0 {
		return nil
	}
	sa.flags &^= saRestart
	return sigaction(&sa, nil)
}

func sigaction(set, old *kernelSigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(interruptSignal),
		uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(old)), 8, 0, 0)
	if errno != 0 {
		return os.NewSyscallError("rt_sigaction", errno)
	}
	return nil
}

// unblockSignal lets interruptSignal through to the calling thread: a mask inherited from the parent process
// may block it.
func unblockSignal() (restore func(), err error) {
	var set, old unix.Sigset_t
	bit := uint(interruptSignal - 1)
	set.Val[bit/64] |= 1 << (bit % 64)
	if err := unix.PthreadSigmask(unix.SIG_UNBLOCK, &set, &old); err != nil {
		return nil, os.NewSyscallError("rt_sigprocmask", err)
	}
	return func() { _ = unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil) }, nil
}
