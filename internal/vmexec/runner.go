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
	cpus, err := slotsOf(c)
	if err != nil {
		return 0, err
	}
	s, err := takeSlot(ctx, c.slots, cpus, 5*time.Second, os.Stderr)
	if err != nil {
		return codeOf(ctx, err)
	}
	defer s.lock.Close()
	if err := sweepRunDirs(c.slots); err != nil {
		return 0, err
	}
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

// slotsOf lists the cores that the machine may be given. The host's own kernel is one thing that
// two runs cannot share: each would take the other's devices for leaks.
func slotsOf(c *config) ([]int, error) {
	if c.kind == kindNative {
		return []int{hostSlot}, nil
	}
	return allowedCPUs()
}

const hostSlot = -1

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
	lock    *os.File // see makeRunDir
}

func newRun(c *config, s *slot) (_ *virtualMachine, err error) {
	r := &virtualMachine{cfg: c, slot: s}
	if r.dir, r.lock, err = makeRunDir(c.slots); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			r.cleanUp()
		}
	}()
	if err := os.Mkdir(r.share(), 0o700); err != nil {
		return nil, err
	}
	if r.console, err = os.Create(filepath.Join(r.dir, "console.log")); err != nil {
		return nil, err
	}
	if r.job, err = newJob(c); err != nil {
		return nil, err
	}
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
	_ = r.lock.Close()
}

func newJob(c *config) (*job, error) {
	paths := []string{c.dir, c.cache}
	if filepath.IsAbs(c.args[0]) {
		paths = append(paths, c.args[0])
	}
	if c.kind != kindNative {
		if err := checkVisible(paths...); err != nil {
			return nil, err
		}
	}
	work, err := chooseWork(paths...)
	if err != nil {
		return nil, err
	}
	j := &job{
		Args: c.args, Dir: c.dir, Work: work, Writable: c.rw, Modules: c.modules,
		ModuleTree: filepath.Join(c.cache, c.kind),
		Consoles:   backends[c.kind].consoles,
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
	return j, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// do starts the machine and sees it through.
func (r *virtualMachine) do(ctx context.Context) (int, error) {
	kind := backends[r.cfg.kind]
	m, err := kind.machine(r)
	if err != nil {
		return 0, err
	}
	m.Dir, m.CPU = r.dir, -1
	if kind.pinned {
		m.CPU = r.slot.cpu
	}
	if err := writeJSON(r.dir, machineFile, m); err != nil {
		return 0, err
	}
	var res result
	if m.Direct {
		res, err = r.runNative(ctx)
	} else {
		res, err = r.runGuest(ctx)
	}
	if cause := context.Cause(ctx); cause != nil {
		if !errors.Is(cause, errTimeout) {
			return codeOf(ctx, cause)
		}
		fmt.Fprintf(os.Stderr, "vmexec: %s: no end after %v (DMLAYER_VM_TIMEOUT)%s\n", r.cfg.args[0], r.cfg.timeout, r.keptLog())
		return ExitTimeout, nil
	}
	if err != nil {
		return 0, err
	}
	return r.verdict(res), nil
}

// runGuest runs the virtual machine and reads what the guest wrote last.
func (r *virtualMachine) runGuest(ctx context.Context) (res result, err error) {
	if r.job.Stdin == stdinTTY {
		restore, err := rawTerminal(os.Stdin)
		if err != nil {
			return res, err
		}
		defer restore()
	}
	waitErr := r.runReaper(ctx)
	if err := readJSON(r.share(), resultFile, &res); err != nil {
		return res, fmt.Errorf("read the result: %w", err)
	}
	if res.Done || ctx.Err() != nil {
		return res, nil
	}
	why := res.Error
	if why == "" {
		why = fmt.Sprintf("the guest kernel ended without a result (%v)", waitErr)
	}
	return res, fmt.Errorf("%s: %s%s\n%s", r.cfg.args[0], why, r.keptLog(), consoleExcerpt(r.console.Name()))
}

// verdict tells the user about leaks and returns the exit code.
func (r *virtualMachine) verdict(res result) int {
	if len(res.Leaks) == 0 {
		return res.Code
	}
	fmt.Fprintf(os.Stderr, "vmexec: %s left behind in the virtual machine:\n\t%s\n", r.cfg.args[0], strings.Join(res.Leaks, "\n\t"))
	if res.Code == 0 {
		return ExitLeak
	}
	return res.Code
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
	stdio := [3]*os.File{pipes.inR, pipes.outW, pipes.errW}
	if r.cfg.kind == kindNative {
		stdio = [3]*os.File{os.Stdin, os.Stdout, os.Stderr}
	}
	cmd := exec.Command("/proc/self/exe", r.dir)
	cmd.Args[0] = reaperName
	cmd.Stderr = r.console
	cmd.ExtraFiles = []*os.File{controlR, r.console, stdio[1], stdio[2], stdio[0], pipes.ackW, r.slot.lock, r.lock}
	if r.cfg.kind == kindNative {
		err = cmd.Start() // in the terminal's session: the job may be a shell
	} else {
		err = startInNamespace(cmd)
	}
	_ = controlR.Close()
	pipes.closeChildSide()
	if err != nil {
		return fmt.Errorf("start the reaper: %w", err)
	}
	copied := &sync.WaitGroup{}
	if r.cfg.kind != kindNative {
		copied = pipes.copy(r.job.Stdin)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-ctx.Done():
		_, _ = controlW.Write([]byte{0}) // it fails where the reaper has just ended
		err = <-ended
	}
	copied.Wait()
	return err
}

// startInNamespace starts cmd as init of a new pid namespace; without root that takes a user
// namespace. Where neither is allowed, or DMLAYER_VM_NAMESPACE=no, cmd starts as an ordinary process
// and does what it can.
func startInNamespace(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWPID}
	if os.Geteuid() != 0 {
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}}
	}
	err := errors.ErrUnsupported
	if os.Getenv("DMLAYER_VM_NAMESPACE") != "no" {
		err = cmd.Start()
	}
	if err == nil {
		return nil
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
