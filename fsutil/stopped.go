package fsutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrStopped says that the kernel has ceased to write to a mounted file system because of an error, or that errors are recorded in it. What
// was not durable before is not there any more after the next mount, and what was deleted then may be there again.
var ErrStopped = errors.New("the file system has stopped after an error")

// sysExt4 has a folder for each ext4 that is mounted, under the name of its block device.
const sysExt4 = "/sys/fs/ext4"

// StoppedByErrors tells whether the kernel has ceased to write to a mounted file system because of an error. That it is mounted read-only
// says nothing, as people mount so, and since Linux 6.12 the kernel leaves an ext4 "rw" that it has stopped: it is one
// that has run into errors since it was checked last, and that was told to stop then. Of other file systems it is
// false: an xfs shuts down instead. An ext4 whose journal was aborted has stopped, though it learns of that only when it is to change
// something next.
func StoppedByErrors(m MountInfo) bool {
	options := strings.Split(m.SuperOptions, ",")
	if slices.ContainsFunc([]string{"emergency_ro", "shutdown"}, func(o string) bool { return hasOption(options, o) }) {
		return true // newer kernels tell it themselves
	}
	if Type(m.Type) != Ext4 {
		return false
	}
	if journalAborted(m.Dev) {
		return true
	}
	if !hasOption(options, "ro") && !slices.Contains(options, "errors=remount-ro") {
		return false
	}
	name, err := deviceName(m.Dev)
	if err != nil {
		return false // it is gone
	}
	n, err := os.ReadFile(filepath.Join(sysExt4, name, "errors_count"))
	return err == nil && strings.TrimSpace(string(n)) != "0"
}

func journalAborted(n DevNum) bool {
	dev, err := openByNumber(n)
	if err != nil {
		return false // it is gone
	}
	defer dev.Close()
	code, err := journalError(dev)
	return err == nil && code != 0
}

// stopped returns ErrStopped where the kernel writes no more to a mounted file system, or where errors are recorded in it. It changes
// nothing: whatever would begin a transaction could be what a full device breaks an ext4 with.
func (m *mounted) stopped() error {
	if _, err := unix.Fgetxattr(int(m.dir.Fd()), "trusted.dmlayer", nil); errors.Is(err, unix.EIO) {
		return fmt.Errorf("%w: it was shut down", ErrStopped)
	}
	if m.typ != Ext4 {
		return nil
	}
	dev, err := openByNumber(m.dev)
	if err != nil {
		return err
	}
	defer dev.Close()
	fs, err := ReadFS(dev)
	if err != nil {
		return err
	}
	if fs.HasErrors {
		return fmt.Errorf("%w: errors are recorded in it", ErrStopped)
	}
	code, err := journalError(dev)
	if err == nil && code != 0 {
		err = fmt.Errorf("%w: its journal was aborted", ErrStopped)
	}
	return err
}

// openByNumber opens a block device for reading.
func openByNumber(n DevNum) (*os.File, error) {
	path, err := devicePath(n)
	if err != nil {
		return nil, err
	}
	return OpenNumber(path, n, false)
}
