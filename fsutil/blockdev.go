package fsutil

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// DevNum is the number of a block device.
type DevNum struct{ Major, Minor uint32 }

// String returns "major:minor", as in tables and sysfs.
func (d DevNum) String() string { return fmt.Sprintf("%d:%d", d.Major, d.Minor) }

func devNum(dev uint64) DevNum { return DevNum{unix.Major(dev), unix.Minor(dev)} }

// DevNumOf returns the number of the block device at path; anything else is errs.ErrInvalid.
func DevNumOf(path string) (DevNum, error) {
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return DevNum{}, fail("look at block device", path, err)
	}
	return blockNumber(path, &st)
}

// DevNumOfFile is DevNumOf for an open block device.
func DevNumOfFile(f *os.File) (DevNum, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return DevNum{}, fail("look at block device", f.Name(), err)
	}
	return blockNumber(f.Name(), &st)
}

func blockNumber(path string, st *unix.Stat_t) (DevNum, error) {
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return DevNum{}, fail("look at block device", path, unix.ENOTBLK)
	}
	return devNum(uint64(st.Rdev)), nil
}

// deviceName returns the kernel's name of a block device ("dm-3", "loop0"), as sysfs and devtmpfs use it.
func deviceName(n DevNum) (string, error) {
	link := "/sys/dev/block/" + n.String()
	target, err := os.Readlink(link)
	if err != nil {
		return "", fail("find block device", n.String(), err)
	}
	return filepath.Base(target), nil
}

// devicePath returns the devtmpfs path of a block device.
func devicePath(n DevNum) (string, error) {
	name, err := deviceName(n)
	if err != nil {
		return "", err
	}
	// sysfs turns the slash of names such as cciss/c0d0 into an exclamation mark.
	return "/dev/" + strings.ReplaceAll(name, "!", "/"), nil
}

// OpenDevice opens a block device without claiming it. Anything but a block device is errs.ErrInvalid.
func OpenDevice(path string, write bool) (*os.File, error) { return openDevice(path, write, 0) }

// OpenNumber opens the block device with that number, which is looked for at path. Another device, or none, is errs.ErrNotFound.
//
// It is quicker than OpenDevice, for devices of device-mapper: a path that leads to a FIFO would wait for somebody at its other end.
func OpenNumber(path string, n DevNum, write bool) (*os.File, error) {
	f, have, err := openBlock(path, write, unix.O_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if have != n {
		return nil, errors.Join(fmt.Errorf("open block device %s: it is %s, not %s: %w", path, have, n, errs.ErrNotFound), f.Close())
	}
	return f, nil
}

// OpenExclusive opens a block device and claims it: while it is open, nobody can mount it or open it
// exclusively, and it is errs.ErrBusy where somebody has. Other device-mapper devices on top of it count.
func OpenExclusive(path string, write bool) (*os.File, error) {
	return openDevice(path, write, unix.O_EXCL)
}

func openDevice(path string, write bool, flags int) (*os.File, error) {
	f, _, err := openBlock(path, write, flags|unix.O_CLOEXEC|unix.O_NONBLOCK)
	return f, err
}

// openBlock opens a block device and tells its number. With O_NONBLOCK the kernel is asked once more, whether it can be polled.
func openBlock(path string, write bool, flags int) (*os.File, DevNum, error) {
	if write {
		flags |= unix.O_RDWR
	}
	// O_EXCL without O_CREAT has its meaning for block devices only: look first.
	if flags&unix.O_EXCL != 0 {
		if _, err := DevNumOf(path); err != nil {
			return nil, DevNum{}, err
		}
	}
	var fd int
	err := retryEINTR(func() (err error) { fd, err = unix.Open(path, flags, 0); return err })
	if err != nil {
		return nil, DevNum{}, fail("open block device", path, err)
	}
	f := os.NewFile(uintptr(fd), path)
	n, err := DevNumOfFile(f)
	if err != nil {
		return nil, n, errors.Join(err, f.Close())
	}
	return f, n, nil
}

// DropCache forgets what the page cache has of an open block device: what device-mapper writes to it from above is not there.
func DropCache(f *os.File) error {
	_, err := ioctlNumber(int(f.Fd()), unix.BLKFLSBUF, 0)
	return fail("drop the cache of", f.Name(), err)
}

// BetweenStarts runs f while this process is not starting a program. A program that is being started has copies of
// all descriptors; with none around, what f closes (a device, the last file of a mount) is closed when f returns,
// and the removal of a device in f is not made busy by such a copy of a descriptor that was closed before. f must
// not start a program.
func BetweenStarts(f func() error) error { return run.BetweenStarts(f) }

// SizeOf returns the size of an open block device or regular file in bytes.
func SizeOf(f *os.File) (uint64, error) {
	fi, err := f.Stat()
	if err != nil {
		return 0, fail("size of", f.Name(), errors.Unwrap(err))
	}
	if fi.Mode().IsRegular() {
		return uint64(fi.Size()), nil
	}
	var size uint64
	if err := ioctl(int(f.Fd()), reqBLKGETSIZE64, &size); err != nil {
		return 0, fail("size of", f.Name(), err)
	}
	return size, nil
}

// OpenReadable opens a block device or a regular file for reading. Anything else is errs.ErrInvalid.
func OpenReadable(path string) (*os.File, error) {
	f, err := os.OpenFile(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fail("open", path, errors.Unwrap(err))
	}
	fi, err := f.Stat()
	if err == nil {
		mode := fi.Mode()
		if mode.IsRegular() || mode&os.ModeDevice != 0 && mode&os.ModeCharDevice == 0 {
			return f, nil
		}
		err = unix.ENOTBLK
	}
	return nil, errors.Join(fail("open", path, err), f.Close())
}

// DeviceSize returns the size of the block device or regular file at path in bytes.
func DeviceSize(path string) (uint64, error) {
	f, err := OpenReadable(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return SizeOf(f)
}

// Flush writes back what the page cache has of a block device and has the device make it durable.
func Flush(f *os.File) error {
	if err := retryEINTR(func() error { return unix.Fsync(int(f.Fd())) }); err != nil {
		return fail("flush", f.Name(), err)
	}
	return nil
}

// Discard gives back the blocks of a range of a block device, which must be open for writing.
// BLKDISCARD wants multiples of the logical block size. A device without discard is errs.ErrUnsupported.
func Discard(f *os.File, offset, length uint64) error {
	if length == 0 {
		return nil
	}
	r := [2]uint64{offset, length}
	if err := ioctl(int(f.Fd()), reqBLKDISCARD, &r); err != nil {
		return fail(fmt.Sprintf("discard %d bytes at %d of", length, offset), f.Name(), err)
	}
	return nil
}

// readFull reads len(buf) bytes at off. A device that ends before is io.EOF, a partial read too.
func readFull(r io.ReaderAt, buf []byte, off int64) error {
	n, err := r.ReadAt(buf, off)
	if n == len(buf) {
		return nil
	}
	if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		err = io.EOF
	}
	return err
}

var errShort = fmt.Errorf("the device is too small: %w", errs.ErrDamaged)
