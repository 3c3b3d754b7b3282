package run

import (
	"os/exec"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// A program that is being started has, from fork to exec, a copy of every descriptor of this process. Closing one of
// them in that time closes nothing: a device stays open, a mount stays mounted, a lock stays held, for a moment
// that nobody can wait for. The gate keeps the two apart.
var gate sync.RWMutex

// BetweenStarts runs f while no program is being started. What f closes for the last time is really closed when f
// returns, and what this process closed before is closed when f begins. It does not wait for programs to
// end. f must not start a program. Programs that are started around this package are not covered.
func BetweenStarts(f func() error) error {
	gate.RLock()
	defer gate.RUnlock()
	return f()
}

// start starts a program and returns when it has none of our descriptors any more.
//
// cmd.Start returns when the kernel has begun to close them: it puts the last steps of each close off until the
// program returns to user mode. A stop is taken at the same place and after them (get_signal runs
// task_work first), so a program that has been stopped once is through. It is let go on at once.
func start(cmd *exec.Cmd) error {
	gate.Lock()
	defer gate.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return nil // it is not ours to signal any more (setuid); it has begun to run
	}
	for {
		// WNOWAIT leaves an exit to cmd.Wait.
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WSTOPPED|unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			break
		}
	}
	_ = syscall.Kill(pid, syscall.SIGCONT)
	return nil
}
