package layertar

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// setTimeAt sets the modification time, and the time of last access to the same; the kernel clamps what
// the file system cannot hold. A symbolic link is not followed.
func setTimeAt(at int, name string, mtime time.Time) error {
	ts := unix.Timespec{Sec: mtime.Unix(), Nsec: int64(mtime.Nanosecond())}
	if err := unix.UtimesNanoAt(at, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &os.PathError{Op: "utimensat", Path: name, Err: err}
	}
	return nil
}
