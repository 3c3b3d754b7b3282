package pooltest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
)

// A child is the test binary started again to run one operation in a process of its own, which can be
// killed or stopped at a fault point. It reports each point that it reaches, and its result, through a
// pipe, so that what it said before it was killed is known.

// childEnv holds a Job as JSON.
const childEnv = "DMLAYER_TEST_CHILD"

// The things that happen to a child at a fault point.
const (
	ActionKill = "kill" // kill -9
	ActionStop = "stop" // SIGSTOP, until Continue
	ActionFail = "fail" // the point returns ErrInjected
)

// ErrInjected is what a point returns under ActionFail.
var ErrInjected = errors.New("injected fault")

// Job says what a child does.
type Job struct {
	Op     string // a key of Operations
	Dirs   pool.Dirs
	Pool   string
	Args   []string
	Action string // "" or one of the actions
	Point  string // where; "" counts the hits of all points
	Hit    int    // at which hit, from 1; 0 is the first
}

// Operations are what children can be told to do.
type Operations map[string]func(ctx context.Context, j Job) error

// Main is testenv.Main for a test binary that starts children of itself.
func Main(m *testing.M, ops Operations) {
	text, ok := os.LookupEnv(childEnv)
	if !ok {
		testenv.Main(m)
	}
	os.Exit(runChild(text, ops))
}

// childPipe is where exec.Cmd puts the first of its ExtraFiles.
const childPipe = 3

// childTimeout bounds an operation in a child.
const childTimeout = time.Minute

func runChild(text string, ops Operations) int {
	var j Job
	pipe := os.NewFile(childPipe, "pipe")
	unix.CloseOnExec(childPipe)
	if err := json.Unmarshal([]byte(text), &j); err != nil || ops[j.Op] == nil {
		fmt.Fprintf(pipe, "error invalid job %q %v\n", text, err)
		return 2
	}
	fault.Set(j.Hook(func(point string) { fmt.Fprintf(pipe, "hit %s\n", point) }))
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(childTimeout))
	defer cancel()
	if err := ops[j.Op](ctx, j); err != nil {
		result, _ := json.Marshal(childError{Text: err.Error(), Class: className(err)})
		fmt.Fprintf(pipe, "error %s\n", result)
		return 1
	}
	fmt.Fprintln(pipe, "done")
	return 0
}

// Hook returns what fault.Set takes to do what the job says. seen is told of every hit first.
func (j Job) Hook(seen func(point string)) func(string) error {
	var mu sync.Mutex
	count := 0
	return func(point string) error {
		mu.Lock()
		defer mu.Unlock()
		seen(point)
		if j.Action == "" || j.Point != "" && j.Point != point {
			return nil
		}
		if count++; count != max(j.Hit, 1) {
			return nil
		}
		switch j.Action {
		case ActionFail:
			return fmt.Errorf("%s: %w", point, ErrInjected)
		case ActionStop:
			SignalSelf(unix.SIGSTOP)
		default:
			SignalSelf(unix.SIGKILL)
		}
		return nil
	}
}

// SignalSelf sends a signal to the calling thread, which is thus the one that acts on it: nothing of
// what comes next is executed first.
func SignalSelf(s unix.Signal) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	_ = unix.Tgkill(unix.Getpid(), unix.Gettid(), s)
}

type childError struct {
	Text  string
	Class string
}

func (e *childError) Error() string { return e.Text }

var classes = map[string]error{
	"invalid": errs.ErrInvalid, "notfound": errs.ErrNotFound, "exists": errs.ErrExists, "busy": errs.ErrBusy,
	"nospace": errs.ErrNoSpace, "damaged": errs.ErrDamaged, "unsupported": errs.ErrUnsupported, "injected": ErrInjected,
}

func className(err error) string {
	if errors.Is(err, ErrInjected) {
		return "injected"
	}
	for name, class := range classes {
		if class == errs.Class(err) {
			return name
		}
	}
	return ""
}

// Unwrap makes the class of a child's error work with errors.Is.
func (e *childError) Unwrap() error { return classes[e.Class] }

// Child is a started child process.
type Child struct {
	t    testing.TB
	job  Job
	pid  int
	read chan struct{} // closed when the pipe has ended

	mu     sync.Mutex
	killAt int // number of hits
	hits   []string
	result string // the last line
	status unix.WaitStatus
	ended  bool
}

// Start starts a child. It is killed at the latest when the test ends.
func Start(t testing.TB, j Job) *Child {
	t.Helper()
	text, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(text))
	cmd.ExtraFiles = []*os.File{w}
	cmd.Stderr = os.Stderr
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		_ = r.Close()
		t.Fatal(err)
	}
	c := &Child{t: t, job: j, pid: cmd.Process.Pid, read: make(chan struct{})}
	_ = cmd.Process.Release() // it is waited for here
	go c.collect(r)
	t.Cleanup(func() { c.Kill() })
	return c
}

func (c *Child) collect(r *os.File) {
	defer close(c.read)
	defer r.Close()
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		c.mu.Lock()
		if hit, ok := strings.CutPrefix(lines.Text(), "hit "); ok {
			c.hits = append(c.hits, hit)
			Reached(hit)
			if len(c.hits) == c.killAt {
				_ = unix.Kill(c.pid, unix.SIGKILL)
			}
		} else {
			c.result = lines.Text()
		}
		c.mu.Unlock()
	}
}

func (c *Child) wait(options int) {
	c.t.Helper()
	for !c.ended {
		_, err := unix.Wait4(c.pid, &c.status, options, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			c.t.Fatalf("wait for child %q: %v", c.job.Op, err)
		}
		c.ended = c.status.Exited() || c.status.Signaled()
		if c.ended {
			<-c.read
		}
		return
	}
}

// WaitStopped waits until the child has stopped at its point; a child that ends instead fails the
// test.
func (c *Child) WaitStopped() {
	c.t.Helper()
	c.wait(unix.WUNTRACED)
	if !c.status.Stopped() {
		c.t.Fatalf("child %q ended before it reached %s: %s", c.job.Op, c.job.Point, c.result)
	}
}

// Continue lets a stopped child go on.
func (c *Child) Continue() {
	c.t.Helper()
	if err := unix.Kill(c.pid, unix.SIGCONT); err != nil {
		c.t.Fatalf("continue child %q: %v", c.job.Op, err)
	}
}

// Kill kills the child, stopped or not, and waits for its end.
func (c *Child) Kill() {
	c.t.Helper()
	if !c.ended {
		_ = unix.Kill(c.pid, unix.SIGKILL)
		c.wait(0)
	}
}

// Wait waits for the child's end and returns its operation's error. Killed tells that it was killed
// before its operation returned.
func (c *Child) Wait() (err error, killed bool) {
	c.t.Helper()
	c.wait(0)
	if c.result == "done" {
		return nil, false
	}
	if text, ok := strings.CutPrefix(c.result, "error "); ok {
		var e childError
		if json.Unmarshal([]byte(text), &e) != nil {
			e.Text = text
		}
		return &e, false
	}
	if c.status.Signaled() && c.status.Signal() == unix.SIGKILL {
		return nil, true
	}
	c.t.Fatalf("child %q ended without a result: %v", c.job.Op, c.status)
	return nil, false
}

// Succeed waits for the child's end and fails the test unless its operation succeeded.
func (c *Child) Succeed() {
	c.t.Helper()
	if err, killed := c.Wait(); err != nil || killed {
		c.t.Fatalf("child %q: killed %v, %v", c.job.Op, killed, err)
	}
}

// KillSoon kills the child when it is heard to have reached its n-th point: by then it is somewhere else,
// nobody knows where.
func (c *Child) KillSoon(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killAt = max(n, len(c.hits)+1)
}

// Hits returns the points that the child has reached, in order.
func (c *Child) Hits() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.hits)
}

// Run runs a child to its end.
func Run(t testing.TB, j Job) *Child {
	t.Helper()
	c := Start(t, j)
	c.wait(0)
	return c
}

// RunKilled runs a child that is to be killed at its point, and fails the test if it never got there.
func RunKilled(t testing.TB, j Job) {
	t.Helper()
	j.Action = ActionKill
	c := Run(t, j)
	if err, killed := c.Wait(); !killed {
		t.Fatalf("%s was not killed at %s: %v", j.Op, j.Point, err)
	}
}

var (
	reachedMu sync.Mutex
	reached   = map[string]bool{}
)

// Reached takes note that a point was reached.
func Reached(point string) {
	reachedMu.Lock()
	defer reachedMu.Unlock()
	reached[point] = true
}

// Unreached returns the points of the program that no test has reached.
func Unreached() []string {
	reachedMu.Lock()
	defer reachedMu.Unlock()
	var names []string
	for _, name := range fault.Names() {
		if !reached[name] {
			names = append(names, name)
		}
	}
	return names
}
