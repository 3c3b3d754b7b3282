package fsutil

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// LoopOptions describes a loop device to attach.
type LoopOptions struct {
	Path     string // of the file
	ReadOnly bool
	// DirectIO asks for direct I/O on the file. Where its file system has none, the loop device goes through the page
	// cache; Loop.DirectIO tells.
	DirectIO bool
	// Autoclear detaches the loop device when its last user closes it: with the pool on it, or with this process
	// where nothing uses it yet.
	Autoclear bool
	// BlockSize is the logical block size in bytes, 512 to the page size; 0 takes the kernel's default.
	BlockSize uint32
}

// Loop is an attached loop device.
type Loop struct {
	Path     string // "/dev/loopN"
	Number   int
	DevNum   DevNum
	DirectIO bool // what the kernel really does
	// File is the open loop device. It keeps an autoclear device until something else has it open.
	File *os.File
}

// Close closes File. It detaches an autoclear device that nothing else has open, and no other.
func (l *Loop) Close() error {
	if err := run.BetweenStarts(l.File.Close); err != nil && !errors.Is(err, os.ErrClosed) {
		return fail("close", l.Path, errors.Unwrap(err))
	}
	return nil
}

// SetCapacity makes the loop device as large as its file is now.
func (l *Loop) SetCapacity() error { return setCapacity(l.File) }

func setCapacity(f *os.File) error {
	_, err := ioctlNumber(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0)
	return fail("set capacity of", f.Name(), err)
}

// SetLoopCapacity makes an attached loop device as large as its file is now.
func SetLoopCapacity(number int) error {
	f, err := OpenDevice(loopPath(number), false)
	if err != nil {
		return err
	}
	defer f.Close()
	return setCapacity(f)
}

func loopPath(number int) string { return "/dev/loop" + strconv.Itoa(number) }

const loopControl = "/dev/loop-control"

// Attach attaches a file to a free loop device, whole and in one step (LOOP_CONFIGURE, Linux 5.8). The
// kernel does not mind a file that is attached already; the caller has to (FindLoops, under a lock of his). When another
// process takes the free device first, Attach takes the next one, until ctx ends. It is errs.ErrDamaged where the file system of
// the file is read-only, and ReadOnly is not asked for.
func Attach(ctx context.Context, o LoopOptions) (*Loop, error) {
	const what = "attach loop device to"
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	file, err := os.OpenFile(o.Path, mode, 0)
	if errors.Is(err, unix.EROFS) {
		return nil, errs.WithHint(fail(what, o.Path, fmt.Errorf("%w: %w", errors.Unwrap(err), errs.ErrDamaged)),
			"the file system with the file is read-only: somebody has mounted it so, or its disk fails, of which the kernel's log (dmesg) tells")
	}
	if err != nil {
		return nil, fail(what, o.Path, errors.Unwrap(err))
	}
	defer file.Close()
	if fi, err := file.Stat(); err != nil || !fi.Mode().IsRegular() {
		return nil, errors.Join(fmt.Errorf("%s %s: not a regular file: %w", what, o.Path, errs.ErrInvalid), err)
	}
	control, err := os.OpenFile(loopControl, os.O_RDWR, 0)
	if err != nil {
		return nil, errs.WithHint(fail(what, o.Path, fmt.Errorf("%s: %w: %w", loopControl, errs.ErrUnsupported, errors.Unwrap(err))),
			"run as root, and load the kernel module: modprobe loop")
	}
	defer control.Close()
	f, number, err := attachFree(ctx, control, file, o)
	if err != nil {
		return nil, fail(what, o.Path, err)
	}
	l, err := newLoop(f, number)
	if err != nil {
		_, cerr := ioctlNumber(int(f.Fd()), unix.LOOP_CLR_FD, 0)
		return nil, fail(what, o.Path, errors.Join(err, cerr, f.Close()))
	}
	return l, nil
}

func newLoop(f *os.File, number int) (*Loop, error) {
	n, err := DevNumOfFile(f)
	if err != nil {
		return nil, err
	}
	st, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	return &Loop{
		Path:     f.Name(),
		Number:   number,
		DevNum:   n,
		DirectIO: st.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		File:     f,
	}, nil
}

// attachFree tries free loop devices until one is configured.
func attachFree(ctx context.Context, control, file *os.File, o LoopOptions) (*os.File, int, error) {
	config := loopConfig(file, o)
	last := -1
	for {
		if err := context.Cause(ctx); err != nil {
			return nil, 0, err
		}
		number, err := ioctlNumber(int(control.Fd()), reqLoopCtlGetFree, 0)
		if err != nil {
			return nil, 0, fmt.Errorf("LOOP_CTL_GET_FREE: %w", err)
		}
		if number == last {
			// Free, and yet busy: somebody has it open exclusively without using it. Make a new one.
			if number, err = addLoop(control); err != nil {
				return nil, 0, err
			}
		}
		f, err := configureLoop(number, config, o.ReadOnly)
		if err == nil {
			return f, number, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return nil, 0, err
		}
		last = number
	}
}

func loopConfig(file *os.File, o LoopOptions) *unix.LoopConfig {
	config := &unix.LoopConfig{Fd: uint32(file.Fd()), Size: o.BlockSize}
	// What losetup without sysfs shows; the kernel reports the real path by itself.
	copy(config.Info.File_name[:len(config.Info.File_name)-1], o.Path)
	for flag, wanted := range map[uint32]bool{
		unix.LO_FLAGS_READ_ONLY: o.ReadOnly,
		unix.LO_FLAGS_AUTOCLEAR: o.Autoclear,
		unix.LO_FLAGS_DIRECT_IO: o.DirectIO,
	} {
		if wanted {
			config.Info.Flags |= flag
		}
	}
	return config
}

func configureLoop(number int, config *unix.LoopConfig, readOnly bool) (*os.File, error) {
	f, err := OpenDevice(loopPath(number), !readOnly)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, errs.WithHint(err, "the kernel has the loop device, /dev has not: mount devtmpfs on /dev")
		}
		return nil, err
	}
	err = retryEINTR(func() error { return unix.IoctlLoopConfigure(int(f.Fd()), config) })
	if err == nil {
		return f, nil
	}
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) && config.Size == 0 {
		err = errs.WithHint(fmt.Errorf("%w: %w", errs.ErrUnsupported, err), "loop devices are configured with LOOP_CONFIGURE, Linux 5.8")
	}
	return nil, errors.Join(fmt.Errorf("LOOP_CONFIGURE %s: %w", f.Name(), err), f.Close())
}

// addLoop makes a new loop device above all that exist.
func addLoop(control *os.File) (int, error) {
	numbers, err := loopNumbers()
	if err != nil {
		return -1, err
	}
	next := 0
	for _, n := range numbers {
		next = max(next, n+1)
	}
	for {
		n, err := ioctlNumber(int(control.Fd()), reqLoopCtlAdd, uintptr(next))
		if errors.Is(err, unix.EEXIST) {
			next++
			continue
		}
		if err != nil {
			return -1, fmt.Errorf("LOOP_CTL_ADD %d: %w", next, err)
		}
		return n, nil
	}
}

func loopNumbers() ([]int, error) {
	entries, err := os.ReadDir("/sys/block")
	if err != nil {
		return nil, fail("list loop devices in", "/sys/block", errors.Unwrap(err))
	}
	var numbers []int
	for _, e := range entries {
		digits, ok := strings.CutPrefix(e.Name(), "loop")
		if n, err := strconv.Atoi(digits); ok && err == nil {
			numbers = append(numbers, n)
		}
	}
	return numbers, nil
}
