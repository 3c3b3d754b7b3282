package run_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// The test binary is also the program that is run: its first argument names the part it plays.
var parts = map[string]func(args []string) int{
	"fail": func(args []string) int {
		fmt.Fprint(os.Stderr, strings.Repeat("x", 10000)+"\nlast words\n")
		return 7
	},
	"env": func([]string) int { fmt.Print(strings.Join(os.Environ(), "\n")); return 0 },
	"stdin": func([]string) int {
		b, err := io.ReadAll(os.Stdin)
		fmt.Print(len(b), err)
		return 0
	},
	"fds": func([]string) int {
		entries, _ := os.ReadDir("/proc/self/fd")
		for _, e := range entries {
			if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
				fmt.Println(target)
			}
		}
		return 0
	},
	"flood": func([]string) int {
		b := make([]byte, 1<<20)
		for range 80 {
			if _, err := os.Stdout.Write(b); err != nil {
				return 1
			}
		}
		return 0
	},
	// hold writes a byte to a FIFO and keeps it open for ever.
	"hold": func(args []string) int { hold(args[0]); return 0 },
	// stubborn does so without heeding SIGTERM, and has a child that does too.
	"stubborn": func(args []string) int {
		signal.Ignore(syscall.SIGTERM)
		child := exec.Command(os.Args[0], "part", "hold", args[0])
		if err := child.Start(); err != nil {
			return 1
		}
		hold(args[0])
		return 0
	},
	// parent runs a program in this process, which the test kills.
	"parent": func(args []string) int {
		err := run.Run(context.Background(), os.Args[0], "part", "hold", args[0])
		fmt.Fprintln(os.Stderr, err)
		return 1
	},
	"outliving-parent": func(args []string) int {
		_, err := run.Do(context.Background(), run.Cmd{Program: os.Args[0], Args: []string{"part", "greet", args[0], args[1]}, Outlive: true})
		fmt.Fprintln(os.Stderr, err)
		return 1
	},
	// greet says a byte, waits for another, and says one more.
	"greet": func(args []string) int {
		out, err := os.OpenFile(args[0], os.O_WRONLY, 0)
		if err != nil {
			return 1
		}
		_, _ = out.Write([]byte{'a'})
		in, err := os.Open(args[1])
		if err != nil {
			return 1
		}
		_, _ = io.ReadFull(in, make([]byte, 1))
		_, _ = out.Write([]byte{'b'})
		return 0
	},
}

func hold(fifo string) {
	f, err := os.OpenFile(fifo, os.O_WRONLY, 0)
	if err != nil {
		os.Exit(3)
	}
	if _, err := f.Write([]byte{'h'}); err != nil {
		os.Exit(3)
	}
	select {}
}

func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "part" {
		// A goroutine that waits for signals keeps "select {}" from being a deadlock.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGUSR1)
		os.Exit(parts[os.Args[2]](os.Args[3:]))
	}
	os.Exit(m.Run())
}

func self(t *testing.T) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return exe
}

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExitCodeIsAnError(t *testing.T) {
	before := run.Started()
	res, err := run.Do(t.Context(), run.Cmd{Program: self(t), Args: []string{"part", "fail"}})
	var e *run.Error
	if !errors.As(err, &e) {
		t.Fatalf("error is %T %v, want *run.Error", err, err)
	}
	if e.ExitCode != 7 || res.ExitCode != 7 || e.Err != nil || e.Program != filepath.Base(self(t)) || !slices.Equal(e.Args, []string{"part", "fail"}) {
		t.Errorf("got %+v", e)
	}
	if !strings.HasSuffix(e.Stderr, "last words") || len(e.Stderr) > 4<<10 {
		t.Errorf("standard error has %d bytes and ends in %q", len(e.Stderr), e.Stderr[max(0, len(e.Stderr)-20):])
	}
	if !strings.Contains(err.Error(), "exit status 7") || strings.Contains(err.Error(), "\n") {
		t.Errorf("error text %q", err)
	}
	if n := run.Started() - before; n != 1 {
		t.Errorf("%d programs were counted, want 1", n)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("LANG", "de_DE.UTF-8")
	t.Setenv("LC_MESSAGES", "de_DE.UTF-8")
	t.Setenv("LANGUAGE", "de")
	t.Setenv("PATH", "/nowhere")
	t.Setenv("KEPT", "yes")
	res, err := run.Do(t.Context(), run.Cmd{Program: self(t), Args: []string{"part", "env"}, Env: []string{"ADDED=1"}})
	if err != nil {
		t.Fatal(err)
	}
	env := strings.Split(string(res.Stdout), "\n")
	for _, want := range []string{"LC_ALL=C", "KEPT=yes", "ADDED=1"} {
		if !slices.Contains(env, want) {
			t.Errorf("environment lacks %s", want)
		}
	}
	for _, kv := range env {
		if strings.HasPrefix(kv, "LANG") || strings.HasPrefix(kv, "LC_M") {
			t.Errorf("environment has %s", kv)
		}
		if path, ok := strings.CutPrefix(kv, "PATH="); ok && (!strings.HasPrefix(path, "/nowhere:") || !strings.Contains(path, "/usr/sbin")) {
			t.Errorf("PATH is %s", path)
		}
	}
}

func TestNoInputAndNoDescriptors(t *testing.T) {
	out, err := run.Output(t.Context(), self(t), "part", "stdin")
	if err != nil || string(out) != "0 <nil>" {
		t.Errorf("standard input gave %q, %v", out, err)
	}
	secret, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer secret.Close()
	out, err = run.Output(t.Context(), self(t), "part", "fds")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte("/dev/null")) || bytes.Contains(out, []byte("secret")) {
		t.Errorf("the program has these files open:\n%s", out)
	}
}

func TestTooMuchOutput(t *testing.T) {
	if err := run.Run(t.Context(), self(t), "part", "flood"); err == nil || !strings.Contains(err.Error(), "bytes of output") {
		t.Errorf("got %v", err)
	}
}

// A lock that goes with the last copy of its descriptor is free at once, though programs are started all the time:
// when it is closed between starts, and when it was closed any time and is looked at between starts.
func TestBetweenStarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	lock := func(t *testing.T) *os.File {
		t.Helper()
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			t.Fatalf("a program has a copy of a closed descriptor: %v", err)
		}
		return f
	}
	for name, round := range map[string]func(t *testing.T) error{
		"closed": func(t *testing.T) error {
			f := lock(t)
			return run.BetweenStarts(f.Close)
		},
		"looked at": func(t *testing.T) error {
			var f *os.File
			err := run.BetweenStarts(func() error { f = lock(t); return nil })
			return errors.Join(err, f.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			stop := startMany(t)
			defer stop()
			for before := run.Started(); run.Started()-before < 100; {
				if err := round(t); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// startMany starts one program after the other until stop is called.
func startMany(t *testing.T) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			default:
				if err := run.Run(t.Context(), "true"); err != nil {
					t.Error(err)
				}
			}
		}
	}()
	return func() { close(quit); <-done }
}

func TestMissingProgram(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for _, tc := range []struct{ tool, hint string }{
		{"/nowhere/mkfs.xfs", "xfsprogs"},
		{"/nowhere/thin_check", "thin-provisioning-tools"},
		{"/nowhere/e2fsck", "e2fsprogs"},
		{"no-such-tool-of-anybody", "no-such-tool-of-anybody"},
	} {
		before := run.Started()
		err := run.Run(t.Context(), tc.tool)
		if !errors.Is(err, errs.ErrUnsupported) || !strings.Contains(errs.Hint(err), tc.hint) {
			t.Errorf("%s: %v, hint %q", tc.tool, err, errs.Hint(err))
		}
		if run.Started() != before {
			t.Errorf("%s: counted, though it never ran", tc.tool)
		}
	}
}

func TestLookBesidePATH(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	if path, err := run.Look("sh"); err != nil || path != "/usr/bin/sh" && path != "/bin/sh" {
		t.Errorf("sh: %q, %v", path, err)
	}
	mine := filepath.Join(dir, "sh")
	if err := os.WriteFile(mine, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if path, err := run.Look("sh"); err != nil || path != mine {
		t.Errorf("PATH does not come first: %q, %v", path, err)
	}
}

func TestCancelledBeforeStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	before := run.Started()
	if err := run.Run(ctx, self(t), "part", "env"); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if run.Started() != before {
		t.Error("the program was started")
	}
}

// The whole group dies with the context, also members that ignore SIGTERM.
func TestCancelKillsTheGroup(t *testing.T) {
	for _, part := range []string{"hold", "stubborn"} {
		t.Run(part, func(t *testing.T) {
			path := fifo(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			done := make(chan error, 1)
			go func() { done <- run.Run(ctx, self(t), "part", part, path) }()
			alive := openFIFO(t, path)
			members := map[string]int{"hold": 1, "stubborn": 2}[part]
			if _, err := io.ReadFull(alive, make([]byte, members)); err != nil {
				t.Fatal(err)
			}
			cancel()
			err := <-done
			var e *run.Error
			if !errors.Is(err, context.Canceled) || !errors.As(err, &e) {
				t.Errorf("got %v", err)
			}
			if _, err := io.ReadAll(alive); err != nil { // ends when the last member is gone
				t.Error(err)
			}
		})
	}
}

func openFIFO(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func TestProgramDiesWithUs(t *testing.T) {
	path := fifo(t)
	parent := exec.Command(self(t), "part", "parent", path)
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	alive := openFIFO(t, path)
	if _, err := io.ReadFull(alive, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	if _, err := io.ReadAll(alive); err != nil {
		t.Error(err)
	}
}

func TestProgramOutlivesUs(t *testing.T) {
	out, in := fifo(t), fifo(t)
	parent := exec.Command(self(t), "part", "outliving-parent", out, in)
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	from := openFIFO(t, out)
	if _, err := io.ReadFull(from, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	to, err := os.OpenFile(in, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	if _, err := to.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
	if said, err := io.ReadAll(from); err != nil || string(said) != "b" {
		t.Errorf("the program said %q, %v after its parent died", said, err)
	}
}
