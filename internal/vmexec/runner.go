package vmexec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// run runs the job of c and returns the exit code of the runner.
func run(c *config) (int, error) {
	ctx, stop := withSignals(context.Background())
	defer stop()
	cpus, err := allowedCPUs()
	if err != nil {
		return 0, err
	}
	s, err := takeSlot(ctx, c.slots, cpus, 5*time.Second, os.Stderr)
	if err != nil {
		return codeOf(ctx, err)
	}
	defer s.lock.Close()
	if c.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, c.timeout, errTimeout)
		defer cancel()
	}
	r, err := newRun(c, s)
	if err != nil {
		return 0, err
	}
	defer r.cleanUp()
	return r.do(ctx)
}

var errTimeout = errors.New("timeout")

// signalError is the cause of a context that a signal cancelled.
type signalError struct{ syscall.Signal }

func (e signalError) Error() string { return "got signal: " + e.Signal.String() }

func withSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGQUIT)
	go func() {
		if sig, ok := <-ch; ok {
			cancel(signalError{sig.(syscall.Signal)})
		}
	}()
	return ctx, func() { signal.Stop(ch); close(ch); cancel(nil) }
}

// codeOf turns the end of ctx by a signal into the exit code of a process that the signal ended.
func codeOf(ctx context.Context, err error) (int, error) {
	var sig signalError
	if errors.As(context.Cause(ctx), &sig) {
		return 128 + int(sig.Signal), nil
	}
	return 0, err
}

// virtualMachine is one run, with its private folder:
//
//	share/        what the guest may write: job and result
//	console.log   the kernel's messages
//	disk0 …       the disks that were asked for
type virtualMachine struct {
	cfg     *config
	slot    *slot
	dir     string
	job     *job
	console *os.File
}

func newRun(c *config, s *slot) (_ *virtualMachine, err error) {
	dir, err := os.MkdirTemp("/tmp", "dmlayer-vm-")
	if err != nil {
		return nil, err
	}
	r := &virtualMachine{cfg: c, slot: s, dir: dir}
	defer func() {
		if err != nil {
			r.cleanUp()
		}
	}()
	if err := os.Mkdir(r.share(), 0o700); err != nil {
		return nil, err
	}
	if r.console, err = os.Create(filepath.Join(dir, "console.log")); err != nil {
		return nil, err
	}
	r.job = newJob(c)
	if err := writeJSON(r.share(), jobFile, r.job); err != nil {
		return nil, err
	}
	return r, writeJSON(r.share(), resultFile, result{Code: ExitHarness})
}

func (r *virtualMachine) share() string { return filepath.Join(r.dir, "share") }

func (r *virtualMachine) cleanUp() {
	if r.console != nil {
		_ = r.console.Close()
	}
	_ = os.RemoveAll(r.dir)
}

func newJob(c *config) *job {
	j := &job{
		Args: c.args, Dir: c.dir, Work: "/mnt", Writable: c.rw, Modules: c.modules,
		ModuleTree: filepath.Join(c.cache, c.kind),
		Stdin:      stdinFramed,
		Merged:     sameFile(os.Stdout, os.Stderr),
	}
	j.Env = append(c.env, "TMPDIR="+j.Work)
	if cache := filepath.Join(c.cache, "tools/ld.so.cache"); exists(cache) {
		j.LibraryCache = cache
	}
	switch {
	case isTerminal(os.Stdin) && isTerminal(os.Stdout):
		j.Stdin = stdinTTY
		if size, err := unix.IoctlGetWinsize(1, unix.TIOCGWINSZ); err == nil {
			j.Rows, j.Cols = size.Row, size.Col
		}
	case isNull(os.Stdin):
		j.Stdin = stdinNone
	}
	j.CheckLeaks = j.Stdin != stdinTTY
	return j
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// do starts the machine and sees it through.
func (r *virtualMachine) do(ctx context.Context) (int, error) {
	m, err := umlMachine(r.cfg, r.job, r.dir, r.share())
	if err != nil {
		return 0, err
	}
	m.Dir, m.CPU = r.dir, r.slot.cpu
	if err := writeJSON(r.dir, machineFile, m); err != nil {
		return 0, err
	}
	if r.job.Stdin == stdinTTY {
		restore, err := rawTerminal(os.Stdin)
		if err != nil {
			return 0, err
		}
		defer restore()
	}
	waitErr := r.runReaper(ctx)
	if cause := context.Cause(ctx); cause != nil {
		if !errors.Is(cause, errTimeout) {
			return codeOf(ctx, cause)
		}
		fmt.Fprintf(os.Stderr, "vmexec: %s: no end after %v (DMLAYER_VM_TIMEOUT); console log: %s\n",
			r.cfg.args[0], r.cfg.timeout, r.keepConsole())
		return ExitTimeout, nil
	}
	return r.verdict(waitErr)
}

// verdict reads what the guest wrote last.
func (r *virtualMachine) verdict(waitErr error) (int, error) {
	var res result
	if err := readJSON(r.share(), resultFile, &res); err != nil {
		return 0, fmt.Errorf("read the result: %w", err)
	}
	if !res.Done {
		why := res.Error
		if why == "" {
			why = fmt.Sprintf("the guest kernel ended without a result (%v)", waitErr)
		}
		log := r.keepConsole()
		return 0, fmt.Errorf("%s: %s; console log: %s\n%s", r.cfg.args[0], why, log, tail(log, 30))
	}
	if len(res.Leaks) > 0 {
		fmt.Fprintf(os.Stderr, "vmexec: %s left behind in the virtual machine:\n\t%s\n", r.cfg.args[0], strings.Join(res.Leaks, "\n\t"))
		if res.Code == 0 {
			return ExitLeak, nil
		}
	}
	return res.Code, nil
}

// runReaper runs the machine to its end, or ends it with ctx.
func (r *virtualMachine) runReaper(ctx context.Context) error {
	controlR, controlW, err := os.Pipe()
	if err != nil {
		return err
	}
	defer controlW.Close()
	var pipes ioPipes
	if err := pipes.open(); err != nil {
		return err
	}
	cmd := exec.Command("/proc/self/exe", r.dir)
	cmd.Args[0] = reaperName
	cmd.Stderr = r.console
	cmd.ExtraFiles = []*os.File{controlR, r.console, pipes.outW, pipes.errW, pipes.inR, pipes.ackW, r.slot.lock}
	err = startInNamespace(cmd)
	_ = controlR.Close()
	pipes.closeChildSide()
	if err != nil {
		return fmt.Errorf("start the reaper: %w", err)
	}
	copied := pipes.copy(r.job.Stdin)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		_ = controlW.Close()
		err = <-ended
	}
	copied.Wait()
	return err
}

// startInNamespace starts cmd as init of a new pid namespace; without root that takes a user
// namespace. Where neither is allowed cmd starts as an ordinary process and does what it can.
func startInNamespace(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	err := cmd.Start()
	if err == nil || os.Getenv("DMLAYER_VM_NAMESPACE") == "require" {
		return err
	}
	plain := exec.Command(cmd.Path, cmd.Args[1:]...)
	plain.Args, plain.Stderr, plain.ExtraFiles = cmd.Args, cmd.Stderr, cmd.ExtraFiles
	plain.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	*cmd = *plain
	return cmd.Start()
}

// ioPipes stand between the machine and the runner's own standard files: UML makes every file
// that it is given non-blocking, which must not happen to a file that the caller shares.
type ioPipes struct{ outR, outW, errR, errW, inR, inW, ackR, ackW *os.File }

func (p *ioPipes) open() (err error) {
	if p.outR, p.outW, err = os.Pipe(); err != nil {
		return err
	}
	if p.errR, p.errW, err = os.Pipe(); err != nil {
		return err
	}
	if p.inR, p.inW, err = os.Pipe(); err != nil {
		return err
	}
	p.ackR, p.ackW, err = os.Pipe()
	return err
}

func (p *ioPipes) closeChildSide() {
	_, _, _, _ = p.outW.Close(), p.errW.Close(), p.inR.Close(), p.ackW.Close()
}

// copy starts the copying. The group is done when the machine's output has ended.
func (p *ioPipes) copy(in stdinMode) *sync.WaitGroup {
	var output sync.WaitGroup
	output.Go(func() { _, _ = io.Copy(os.Stdout, p.outR) })
	output.Go(func() { _, _ = io.Copy(os.Stderr, p.errR) })
	go func() {
		switch in {
		case stdinTTY:
			if _, err := p.ackR.Read(make([]byte, 1)); err == nil {
				_, _ = io.Copy(p.inW, os.Stdin)
			}
		case stdinFramed:
			_ = sendFrames(p.inW, p.ackR, os.Stdin)
		}
		// inW stays open: UML takes the end of a console's input for a hangup.
	}()
	return &output
}

// keepConsole moves the console log to where it outlives the run and returns its path.
func (r *virtualMachine) keepConsole() string {
	dir := filepath.Join(r.cfg.cache, "log")
	name := filepath.Join(dir, fmt.Sprintf("%s-%s.log", filepath.Base(r.cfg.args[0]), filepath.Base(r.dir)))
	data, err := os.ReadFile(r.console.Name())
	if err == nil {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = os.WriteFile(name, data, 0o644)
		}
	}
	if err != nil {
		return fmt.Sprintf("(lost: %v)", err)
	}
	return name
}

// tail returns the last n lines of a file.
func tail(path string, n int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimRight(string(data), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
