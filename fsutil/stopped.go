package fsutil

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sysExt4 has a folder for each ext4 that is mounted, under the name of its block device.
const sysExt4 = "/sys/fs/ext4"

// StoppedByErrors tells whether the kernel has ceased to write to a mounted file system because of an error. That it is mounted read-only
// says nothing, as people mount so, and since Linux 6.12 the kernel leaves an ext4 "rw" that it has stopped: it is one
// that has run into errors since it was checked last, and that was told to stop then. Of other file systems it is
// false: an xfs shuts down instead.
func StoppedByErrors(m MountInfo) bool {
	options := strings.Split(m.SuperOptions, ",")
	if slices.ContainsFunc([]string{"emergency_ro", "shutdown"}, func(o string) bool { return hasOption(options, o) }) {
		return true // newer kernels tell it themselves
	}
	if Type(m.Type) != Ext4 || !hasOption(options, "ro") && !slices.Contains(options, "errors=remount-ro") {
		return false
	}
	name, err := deviceName(m.Dev)
	if err != nil {
		return false // it is gone
	}
	n, err := os.ReadFile(filepath.Join(sysExt4, name, "errors_count"))
	return err == nil && strings.TrimSpace(string(n)) != "0"
}
