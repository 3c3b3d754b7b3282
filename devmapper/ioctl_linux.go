package devmapper

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const controlPath = "/dev/mapper/control"

// control is the kernel's end of the interface. This is the only file of the
// module that issues device-mapper ioctls.
type control struct {
	// A file rather than a number: it stays open until calls in flight have
	// returned, so that none of them meets a reused number.
	file *os.File
}

func openControl() (Transport, error) {
	fd, err := openNode(0)
	if err != nil {
		return nil, err
	}
	return &control{file: os.NewFile(uintptr(fd), controlPath)}, nil
}

// openNode opens the control node. Reading rights suffice for every command:
// the kernel asks for CAP_SYS_ADMIN instead.
func openNode(flags int) (int, error) {
	for {
		fd, err := unix.Open(controlPath, unix.O_RDONLY|unix.O_CLOEXEC|flags, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			var errno syscall.Errno
			errors.As(err, &errno) // unix.Open returns nothing else
			return -1, &Error{Op: opOpen, Device: controlPath, Errno: errno, Hint: whyNoControl(errno)}
		}
		return fd, nil
	}
}

// whyNoControl tells a missing driver from a missing node.
func whyNoControl(errno syscall.Errno) string {
	switch errno {
	case unix.ENOENT:
		dev, err := os.ReadFile("/sys/class/misc/device-mapper/dev")
		if err != nil {
			return "the kernel has no device-mapper; modprobe dm_mod loads it where it is a module"
		}
		major, minor, _ := strings.Cut(strings.TrimSpace(string(dev)), ":")
		return fmt.Sprintf("the kernel has device-mapper, but this /dev has no node for it: mknod %s c %s %s", controlPath, major, minor)
	case unix.ENXIO, unix.ENODEV:
		return "the node is there, but the kernel has no device-mapper; modprobe dm_mod loads it where it is a module"
	case unix.EPERM:
		return "the device cgroup of this container forbids it"
	}
	return ""
}

func (c *control) Close() error { return c.file.Close() }

func (c *control) Ioctl(ctx context.Context, cmd Command, buf []byte) error {
	if len(buf) < headerSize {
		return unix.EINVAL
	}
	conn, err := c.file.SyscallConn()
	if err != nil {
		return unix.EBADF
	}
	var result error
	err = conn.Control(func(fd uintptr) {
		if ctx.Done() == nil {
			result = ioctl(fd, cmd, buf, nil)
		} else {
			result = ioctlInterruptible(ctx, fd, cmd, buf)
		}
	})
	if err != nil {
		return unix.EBADF // closed
	}
	return result
}

// ioctl repeats a call that a signal has interrupted, unless stop is set.
func ioctl(fd uintptr, cmd Command, buf []byte, stop *atomic.Bool) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(cmd.Request()), uintptr(unsafe.Pointer(&buf[0])))
		runtime.KeepAlive(buf)
		switch {
		case errno == 0:
			return nil
		case errno != unix.EINTR:
			return errno
		case stop != nil && stop.Load():
			return errno
		}
	}
}

// ioctlInterruptible issues a call that gives up when ctx ends, if the kernel
// is in a wait that signals interrupt.
//
// A signal alone does not do it: Go's handlers have SA_RESTART, so the kernel
// would start the call again after the handler. But then it reads the request
// again, and by that time the request has been made one that names no device.
// Whatever the moment of the signal, the call therefore ends: before the
// kernel has read the request with ENXIO; in the wait by rolling back, and
// then with ENXIO; after the wait with its own result.
//
// The signal is SIGURG, which the Go runtime uses to preempt goroutines and
// promises to tolerate at any time. A program that ignores it (signal.Ignore)
// waits for the call to end by itself.
func ioctlInterruptible(ctx context.Context, fd uintptr, cmd Command, buf []byte) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var (
		pid, tid = unix.Getpid(), unix.Gettid()
		mu       sync.Mutex
		returned bool
		stopped  atomic.Bool
	)
	stop := context.AfterFunc(ctx, func() {
		mu.Lock()
		defer mu.Unlock()
		if returned {
			return
		}
		stopped.Store(true)
		disown(buf)
		// It cannot fail: the thread is ours and is kept until returned.
		_ = unix.Tgkill(pid, tid, unix.SIGURG)
	})
	defer stop()
	err := ioctl(fd, cmd, buf, &stopped)
	mu.Lock()
	returned = true
	mu.Unlock()
	if err != nil && stopped.Load() && (errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EINTR)) {
		return ctx.Err()
	}
	return err
}

// disown makes the request in buf name no device, with one store, while the
// kernel may be reading it: a device number beside a name or uuid is ENXIO, and
// so is the absence of all three. The kernel writes the field back only after
// success.
func disown(buf []byte) {
	dev := (*uint64)(unsafe.Pointer(&buf[offDev]))
	if buf[offName] == 0 && buf[offUUID] == 0 {
		atomic.StoreUint64(dev, 0)
		return
	}
	atomic.StoreUint64(dev, ByDev(DevNum{maxMajor, maxMinor}).dev.encode())
}

// controlEvents watches the control node through the runtime's poller. The
// kernel compares its global event counter with the one remembered for this
// open file (dm-ioctl.c, dm_poll), so each source needs a file of its own.
type controlEvents struct {
	file *os.File
	conn syscall.RawConn
}

func (c *control) Events() (EventSource, error) {
	fd, err := openNode(unix.O_NONBLOCK)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), controlPath) // non-blocking: goes to the poller
	conn, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	return &controlEvents{file, conn}, nil
}

func (e *controlEvents) Close() error { return e.file.Close() }

func (e *controlEvents) Arm() error {
	buf := make([]byte, headerSize)
	ne := binary.NativeEndian
	ne.PutUint32(buf[offVersion:], requestMajor)
	ne.PutUint32(buf[offDataSize:], headerSize)
	ne.PutUint32(buf[offDataStart:], headerSize)
	var result error
	err := e.conn.Control(func(fd uintptr) { result = ioctl(fd, CmdArmPoll, buf, nil) })
	if err != nil {
		return err
	}
	return result
}

func (e *controlEvents) Wait(ctx context.Context) error {
	if err := e.file.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = e.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var result error
	err := e.conn.Read(func(fd uintptr) bool {
		var ready bool
		ready, result = readable(fd)
		return ready || result != nil
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return err
	}
	return result
}

// readable asks without waiting.
func readable(fd uintptr) (bool, error) {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		if !errors.Is(err, unix.EINTR) {
			return n > 0, err
		}
	}
}
