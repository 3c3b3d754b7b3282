package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/spf13/cobra"
)

// app is one invocation of the command line.
type app struct {
	in       io.Reader
	out, err io.Writer
	env      func(string) string
	now      func() time.Time
	euid     func() int

	flags  globalFlags
	format format             // what flags.format means; set before a command runs
	stop   context.CancelFunc // ends the time that --timeout allows

	containerdAddress string // of serve

	// hangup is what SIGHUP does to a command that outlives the terminal it was started from; nil ends it.
	hangup atomic.Pointer[func()]
}

// interrupted is the cause of a context that a signal cancelled.
type interrupted struct{ signal syscall.Signal }

func (i interrupted) Error() string { return fmt.Sprintf("interrupted by %s", signalName(i.signal)) }

// errTimeout is the cause of a context that --timeout ended.
var errTimeout = errors.New("timed out")

// Run executes one command line and returns the exit code. SIGINT, SIGTERM and SIGHUP cancel the
// running operation, which undoes itself before Run returns; further ones only say that it does.
func Run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	a := &app{in: stdin, out: stdout, err: stderr, env: os.Getenv, now: time.Now, euid: os.Geteuid}
	ctx, done := a.catchSignals(ctx)
	defer done()
	return a.run(ctx, args)
}

func (a *app) run(ctx context.Context, args []string) int {
	root := a.newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteContextC(ctx)
	if a.stop != nil {
		defer a.stop()
	}
	if cmd != nil && cmd.Context() != nil {
		ctx = cmd.Context() // the one that --timeout bounds
	}
	return a.report(err, context.Cause(ctx), a.flags.format == "json" || asksForJSON(args))
}

// catchSignals returns a context that the first signal cancels.
func (a *app) catchSignals(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	signals := make(chan os.Signal, 4)
	// Without a handler for SIGPIPE a reader of standard output that goes away would kill us in the
	// middle of the work; with one, the write fails and the work is undone.
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		for s := range signals {
			sig, ok := s.(syscall.Signal)
			if !ok || sig == syscall.SIGPIPE {
				continue
			}
			if hangup := a.hangup.Load(); sig == syscall.SIGHUP && hangup != nil {
				(*hangup)()
				continue
			}
			if context.Cause(ctx) != nil {
				fmt.Fprintf(a.err, "dmlayer: %s: already stopping: undoing what was begun\n", signalName(sig))
				continue
			}
			cancel(interrupted{sig})
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		<-stopped
		cancel(nil)
	}
}

func signalName(s syscall.Signal) string {
	switch s {
	case syscall.SIGINT:
		return "SIGINT"
	case syscall.SIGTERM:
		return "SIGTERM"
	case syscall.SIGHUP:
		return "SIGHUP"
	}
	return s.String()
}

// asksForJSON looks for --format json in args: where parsing the flags failed, their values are not
// known, and the error should still come in the asked form.
func asksForJSON(args []string) bool {
	for i, arg := range args {
		switch {
		case arg == "--":
			return false
		case arg == "--format" && i+1 < len(args):
			if args[i+1] == "json" {
				return true
			}
		case strings.HasPrefix(arg, "--format="):
			if arg == "--format=json" {
				return true
			}
		}
	}
	return false
}

// bounded gives cmd the time that --timeout allows.
func (a *app) bounded(cmd *cobra.Command) {
	if a.flags.timeout <= 0 {
		return
	}
	ctx, stop := context.WithTimeoutCause(cmd.Context(), a.flags.timeout, errTimeout)
	a.stop = stop
	cmd.SetContext(ctx)
}
