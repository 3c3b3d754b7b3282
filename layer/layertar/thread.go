package layertar

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// onOwnThread runs fn on a thread whose umask is empty and nobody else's, so that files can be made with
// the mode that they are to have. exact is false where the kernel does not allow that.
func onOwnThread(fn func(exact bool) error) error {
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread ends with the goroutine, and its umask with it.
		runtime.LockOSThread()
		exact := unix.Unshare(unix.CLONE_FS) == nil
		if exact {
			unix.Umask(0)
		}
		done <- fn(exact)
	}()
	return <-done
}
