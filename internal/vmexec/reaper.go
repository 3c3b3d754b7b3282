package vmexec

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// reaperName is argv[0] of the reaper.
const reaperName = "vmexec-reaper"

// The reaper's open files beside the standard ones. The first is the reading end of a pipe that
// only the runner can write to: a byte asks for the end of the machine, and the end of the pipe
// is the end of the runner.
const (
	fdControl = 3 + iota
	fdConsole
	fdStdout
	fdStderr
	fdStdin
	fdAck
	fdSlot
	fdRunDir
)

// machine is what the reaper has to start.
type machine struct {
	Path    string
	Args    []string // with argv[0]
	Env     []string
	Dir     string // of the run, removed by the reaper when the runner cannot
	CPU     int    // to pin to, or -1
	WorkDir string // current folder of the program, or "" for any
	Direct  bool   // the job itself, on the host's kernel: it gets the runner's standard files
}

const machineFile = "machine.json"

// reaperMain starts the machine that is described in runDir, waits for it, and returns its exit
// code. When the runner dies first, it ends the machine and tidies up in the runner's place.
func reaperMain(runDir string) int {
	code, orphan, err := reap(runDir)
	if orphan {
		_ = os.RemoveAll(runDir)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "vmexec reaper:", err)
		return ExitHarness
	}
	return code
}

func reap(runDir string) (code int, orphan bool, err error) {
	for fd := fdControl; fd <= fdRunDir; fd++ {
		unix.CloseOnExec(fd)
	}
	// The runner decides what a signal to the whole process group means.
	signal.Notify(make(chan os.Signal, 1), unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	var m machine
	if err := readJSON(runDir, machineFile, &m); err != nil {
		return 0, false, err
	}
	if os.Getpid() != 1 {
		// Without a pid namespace: at least whatever loses its parent becomes a child of this process.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return 0, false, fmt.Errorf("become a subreaper: %w", err)
		}
	}
	pid, err := startMachine(&m)
	if err != nil {
		return 0, false, err
	}
	gone := make(chan struct{})
	go func() {
		control := os.NewFile(fdControl, "control")
		if n, _ := control.Read(make([]byte, 1)); n == 0 {
			close(gone)
		}
		_ = unix.Kill(pid, unix.SIGKILL)
	}()
	code, err = reapUntil(pid)
	killDescendants()
	select {
	case <-gone:
		orphan = true
	default:
	}
	return code, orphan, err
}

func startMachine(m *machine) (pid int, err error) {
	// The affinity belongs to the thread, and a child inherits that of the thread which forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if m.CPU >= 0 {
		var set unix.CPUSet
		set.Set(m.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return 0, fmt.Errorf("pin to core %d: %w", m.CPU, err)
		}
	}
	attr := &syscall.ProcAttr{
		Dir:   m.WorkDir,
		Env:   m.Env,
		Files: []uintptr{0, fdConsole, fdConsole, fdConsole, fdStdout, fdStderr, fdStdin, fdAck},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	}
	if m.Direct {
		attr.Sys = nil
		attr.Files = []uintptr{fdStdin, fdStdout, fdStderr}
	}
	if pid, err = syscall.ForkExec(m.Path, m.Args, attr); err != nil {
		return 0, fmt.Errorf("start %s: %w", m.Path, err)
	}
	return pid, nil
}

// killDescendants kills every process below this one, until there is none.
func killDescendants() {
	for {
		if os.Getpid() == 1 {
			_ = unix.Kill(-1, unix.SIGKILL) // everything else in the pid namespace
		} else {
			for _, pid := range children() {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		_, err := unix.Wait4(-1, nil, 0, nil)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return // ECHILD: there is none
		}
	}
}

// children lists the processes whose parent is this one. /proc must be that of this process's pid
// namespace.
func children() []int {
	self := os.Getpid()
	entries, _ := os.ReadDir("/proc")
	var out []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// The name, in brackets, may hold anything; state and parent follow it.
		_, rest, _ := strings.Cut(string(stat[strings.LastIndexByte(string(stat), ')')+1:]), " ")
		f := strings.Fields(rest)
		if len(f) > 1 && f[1] == strconv.Itoa(self) {
			out = append(out, pid)
		}
	}
	return out
}
