// Package run starts programs. It is the only place in dmlayer's production code that does, so that
// every program gets the same treatment: a context, the C locale, nothing to read, a process group
// of its own that dies with the context or with this process, and a typed error.
package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// stderrKept is how many bytes of the end of standard error an Error keeps.
const stderrKept = 4 << 10

// stdoutLimit bounds what a program may print; more is an error, not a cut result.
const stdoutLimit = 64 << 20

// grace is how long a cancelled program has between SIGTERM and SIGKILL. lvm2 and e2fsck use it to
// leave a consistent state; anything else dies from SIGTERM at once.
const grace = 3 * time.Second

// Cmd describes one run of a program.
type Cmd struct {
	// Program is a bare name, searched as Look does, or a path with a slash.
	Program string
	Args    []string
	// Env is added to the environment of this process ("NAME=value"); LC_ALL=C is always set.
	Env []string
	// Outlive lets the program finish when this process is killed. For programs for which half of
	// their work is worse than all of it (lvm2). A cancelled context still ends it.
	Outlive bool
	// Stdin is the standard input, unless nil: a file that nobody reads, whose lock the program keeps while it lives.
	Stdin *os.File
}

// Result is what a program that exited said.
type Result struct {
	Stdout   []byte
	Stderr   []byte // the last few KiB
	ExitCode int
}

// Error says that a program could not do its work: it exited with a code other than 0, was killed, or
// its context ended. Unwrap gives the cause, where there is one beside the exit code.
type Error struct {
	Program  string   // as asked for, without the directory
	Args     []string // without the program itself
	ExitCode int      // -1 where it was killed by a signal
	Stderr   string   // the last few KiB, trimmed
	Err      error    // context.Cause of the context, or a signal as text; nil for a plain exit code
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Program)
	switch {
	case e.Err != nil:
		fmt.Fprintf(&b, ": %v", e.Err)
	default:
		fmt.Fprintf(&b, ": exit status %d", e.ExitCode)
	}
	if s := strings.TrimSpace(e.Stderr); s != "" {
		fmt.Fprintf(&b, ": %s", strings.ReplaceAll(s, "\n", "; "))
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

var started atomic.Uint64

// Started returns how many programs this process has started. Tests count budgets with it.
func Started() uint64 { return started.Load() }

// Run runs a program and drops what it prints.
func Run(ctx context.Context, program string, args ...string) error {
	_, err := Do(ctx, Cmd{Program: program, Args: args})
	return err
}

// Output runs a program and returns what it wrote to standard output.
func Output(ctx context.Context, program string, args ...string) ([]byte, error) {
	res, err := Do(ctx, Cmd{Program: program, Args: args})
	return res.Stdout, err
}

// Do runs one program to its end. A missing program is errs.ErrUnsupported with a hint that names the
// package; everything that goes wrong after the start is an *Error. The Result is valid also beside an
// *Error, for programs whose exit code is an answer (e2fsck).
//
// When ctx ends, the program's process group gets SIGTERM, three seconds later SIGKILL, and Do returns
// once the program is gone, or three seconds after that where even this does not end it: in the kernel it waits for a device.
// When this process dies, the program is killed, unless Outlive is set.
func Do(ctx context.Context, c Cmd) (Result, error) {
	path, err := Look(c.Program)
	if err != nil {
		return Result{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return Result{}, &Error{Program: base(c.Program), Args: c.Args, ExitCode: -1, Err: err}
	}
	// The kernel sends the parent-death signal when the thread that forked ends, not the process.
	// Pinned, the thread lives as long as this call.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	stdout := &limited{limit: stdoutLimit}
	stderr := &tail{keep: stderrKept}
	group := &group{stuck: make(chan struct{})}
	cmd := exec.CommandContext(ctx, path, c.Args...)
	cmd.Env = environ(c.Env)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	if c.Stdin != nil {
		cmd.Stdin = c.Stdin
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if !c.Outlive {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL // ends it also while start has it stopped
	}
	cmd.Cancel = func() error { return group.end(cmd.Process.Pid) }
	cmd.WaitDelay = 2 * grace // a daemon that kept our pipes must not hold us
	if err := start(cmd); err != nil {
		return Result{}, fmt.Errorf("start %s: %w", c.Program, err)
	}
	started.Add(1)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-group.stuck: // what it has said so far is still being collected
		err := fmt.Errorf("it was killed and does not end, perhaps because a device does not answer: %w", context.Cause(ctx))
		return Result{ExitCode: -1}, &Error{Program: base(c.Program), Args: c.Args, ExitCode: -1, Err: err}
	}
	group.over()

	res := Result{Stdout: stdout.buf.Bytes(), Stderr: stderr.buf, ExitCode: cmd.ProcessState.ExitCode()}
	if stdout.err != nil {
		err = stdout.err // and not the broken pipe that it gave the program
	}
	return res, c.verdict(ctx, res, cmd.ProcessState, err)
}

// verdict turns the end of a program into nil or an *Error.
func (c Cmd) verdict(ctx context.Context, res Result, state *os.ProcessState, err error) error {
	if err == nil {
		return nil
	}
	e := &Error{Program: base(c.Program), Args: c.Args, ExitCode: res.ExitCode, Stderr: strings.TrimSpace(string(res.Stderr))}
	var exit *exec.ExitError
	switch cause := context.Cause(ctx); {
	case cause != nil && !state.Success():
		e.Err = cause
	case !errors.As(err, &exit):
		e.Err = err // the output was too long, or the pipes stayed open
	case state.ExitCode() < 0:
		e.Err = errors.New(state.String())
	}
	return e
}

// group ends a program's process group, politely first.
type group struct {
	mu    sync.Mutex
	done  bool
	kill  *time.Timer   // also what gives up on it, later
	stuck chan struct{} // closed when it was killed in vain
}

func (g *group) end(pid int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.done {
		return os.ErrProcessDone
	}
	g.kill = time.AfterFunc(grace, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if !g.done { // not waited for yet, so the number still is ours
			_ = syscall.Kill(-pid, syscall.SIGKILL)
			g.kill = time.AfterFunc(grace, func() { close(g.stuck) })
		}
	})
	if err := syscall.Kill(-pid, syscall.SIGTERM); err != nil {
		return os.ErrProcessDone
	}
	return nil
}

func (g *group) over() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.done = true
	if g.kill != nil {
		g.kill.Stop()
	}
}

// environ is our environment with the C locale, so that messages can be read by programs, and with
// the system directories in PATH for tools that start others.
func environ(extra []string) []string {
	env := make([]string, 0, len(os.Environ())+len(extra)+2)
	path := os.Getenv("PATH")
	for _, dir := range systemDirs {
		if !contains(strings.Split(path, ":"), dir) {
			path = strings.TrimPrefix(path+":"+dir, ":")
		}
	}
	for _, kv := range append(os.Environ(), extra...) {
		name, _, _ := strings.Cut(kv, "=")
		if name == "PATH" || name == "LANG" || name == "LANGUAGE" || strings.HasPrefix(name, "LC_") {
			continue
		}
		env = append(env, kv)
	}
	return append(env, "PATH="+path, "LC_ALL=C")
}

func contains(list []string, s string) bool {
	for _, e := range list {
		if e == s {
			return true
		}
	}
	return false
}

func base(program string) string {
	return program[strings.LastIndexByte(program, '/')+1:]
}

// limited collects up to limit bytes and fails on more.
type limited struct {
	buf   bytes.Buffer
	limit int
	err   error
}

func (l *limited) Write(p []byte) (int, error) {
	if l.buf.Len()+len(p) > l.limit {
		l.err = fmt.Errorf("more than %d bytes of output", l.limit)
		return 0, l.err
	}
	return l.buf.Write(p)
}

// tail keeps the last bytes written to it.
type tail struct {
	buf  []byte
	keep int
}

func (t *tail) Write(p []byte) (int, error) {
	t.buf = append(t.buf, p...)
	if over := len(t.buf) - t.keep; over > 0 {
		t.buf = append(t.buf[:0], t.buf[over:]...)
	}
	return len(p), nil
}
