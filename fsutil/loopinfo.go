package fsutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	losetup "github.com/freddierice/go-losetup/v2"
	"golang.org/x/sys/unix"
)

// LoopInfo describes an attached loop device.
type LoopInfo struct {
	Number int
	Path   string // "/dev/loopN"
	// BackingFile is the path of the file as the kernel knows it now, seen from this process's root: it follows
	// renames.
	BackingFile string
	Deleted     bool // the file has no name any more
	Dev, Inode  uint64
	ReadOnly    bool
	Autoclear   bool
	DirectIO    bool
}

const deletedSuffix = " (deleted)"

// Loops returns all attached loop devices, by number of the directory order.
func Loops() ([]LoopInfo, error) {
	numbers, err := loopNumbers()
	if err != nil {
		return nil, err
	}
	var loops []LoopInfo
	for _, n := range numbers {
		l, attached, err := LoopOf(n)
		if err != nil {
			return nil, err
		}
		if attached {
			loops = append(loops, l)
		}
	}
	return loops, nil
}

// LoopOf describes one loop device and says whether it is attached.
func LoopOf(number int) (LoopInfo, bool, error) {
	name, attached, err := backingFile(number)
	if err != nil || !attached {
		return LoopInfo{}, false, err
	}
	info, err := losetup.New(uint64(number), os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC).GetInfo()
	if err != nil {
		// The library's errors cannot be told apart. A device that was detached since is none.
		if _, attached, serr := backingFile(number); serr == nil && !attached {
			return LoopInfo{}, false, nil
		}
		return LoopInfo{}, false, fmt.Errorf("look at %s: %w", loopPath(number), err)
	}
	l := LoopInfo{
		Number:      number,
		Path:        loopPath(number),
		BackingFile: name,
		Dev:         info.Device,
		Inode:       info.INode,
		ReadOnly:    info.Flags&losetup.FlagsReadOnly != 0,
		Autoclear:   info.Flags&losetup.FlagsAutoClear != 0,
		DirectIO:    info.Flags&losetup.FlagsDirectIO != 0,
	}
	l.resolveDeleted()
	return l, true, nil
}

// LoopAt describes the loop device with a device number; false is for one that is not attached, and for what is no loop device.
func LoopAt(n DevNum) (LoopInfo, bool, error) {
	name, err := deviceName(n)
	if err != nil {
		return LoopInfo{}, false, err
	}
	digits, ok := strings.CutPrefix(name, "loop")
	number, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return LoopInfo{}, false, nil
	}
	return LoopOf(number)
}

// resolveDeleted tells the kernel's " (deleted)" from a file that is called so.
func (l *LoopInfo) resolveDeleted() {
	name, ok := strings.CutSuffix(l.BackingFile, deletedSuffix)
	if !ok || l.IsFile(l.BackingFile) {
		return
	}
	l.BackingFile, l.Deleted = name, true
}

// IsFile says whether path leads to the file behind the loop device.
func (l *LoopInfo) IsFile(path string) bool {
	var st unix.Stat_t
	if err := retryEINTR(func() error { return unix.Stat(path, &st) }); err != nil {
		return false
	}
	return uint64(st.Dev) == l.Dev && st.Ino == l.Inode
}

// backingFile reads what sysfs says about a loop device. The attribute is there only while it is attached.
func backingFile(number int) (name string, attached bool, err error) {
	path := fmt.Sprintf("/sys/block/loop%d/loop/backing_file", number)
	b, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return "", false, nil
	case err != nil:
		return "", false, fail("read", path, errors.Unwrap(err))
	}
	// file_path() escapes nothing: all but the newline at the end is the name, also other newlines.
	return strings.TrimSuffix(string(b), "\n"), true, nil
}

// FindLoops returns the loop devices that the file at path is attached to: by device and inode, so that neither
// renames, links nor mount namespaces matter. Where no file is at path, it returns those whose deleted file had
// that path.
func FindLoops(path string) ([]LoopInfo, error) {
	var st unix.Stat_t
	err := retryEINTR(func() error { return unix.Stat(path, &st) })
	gone := errors.Is(err, unix.ENOENT)
	if err != nil && !gone {
		return nil, fail("find loop devices of", path, err)
	}
	if gone {
		path = realPath(path)
	}
	all, err := Loops()
	if err != nil {
		return nil, fmt.Errorf("find loop devices of %s: %w", path, err)
	}
	var found []LoopInfo
	for _, l := range all {
		if gone && l.Deleted && l.BackingFile == path ||
			!gone && l.Dev == uint64(st.Dev) && l.Inode == st.Ino {
			found = append(found, l)
		}
	}
	return found, nil
}

// realPath resolves the links in the directory of a file that is gone, as far as the directory is there.
func realPath(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		return filepath.Clean(path)
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return abs
	}
	return filepath.Join(dir, filepath.Base(abs))
}
