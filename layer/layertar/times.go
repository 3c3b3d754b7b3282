package layertar

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// setTime sets the modification time, and the time of last access to the same; the kernel clamps what
// the file system cannot hold. A symbolic link is not followed.
func setTime(path string, mtime time.Time) error {
	ts := unix.Timespec{Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}
	err := unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return &os.PathError{Op: "utimensat", Path: path, Err: err}
	}
	return nil
}
