package main_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

// program is the program as a user starts it, with a root and a run directory of its own.
type program struct {
	t   *testing.T
	ctx context.Context
	bin string
	env []string
}

func newProgram(t *testing.T) program {
	t.Helper()
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	p := program{t: t, bin: filepath.Join(dir, "dmlayer")}
	if err := os.Symlink(self, p.bin); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(time.Minute))
	t.Cleanup(cancel)
	p.ctx = ctx
	p.env = append(os.Environ(), "DMLAYER_ROOT="+filepath.Join(dir, "root"), "DMLAYER_RUN="+filepath.Join(dir, "run"))
	return p
}

func (p program) command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(p.ctx, p.bin, args...)
	cmd.Env = p.env
	return cmd
}

// exits runs a command that must exit with code, and returns what it wrote to standard error.
func (p program) exits(code int, args ...string) string {
	p.t.Helper()
	cmd := p.command(args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		p.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("dmlayer %s: exit code %d, want %d\n%s", strings.Join(args, " "), got, code, &stderr)
	}
	return stderr.String()
}

// A service tells systemd when it is ready and when it ends, lives through SIGHUP, and ends well by SIGTERM.
func TestServe(t *testing.T) {
	p := newProgram(t)
	if said := p.exits(3, "serve", "--docker=", "--containerd="); !strings.Contains(said, "dmlayer pool create") {
		t.Errorf("without a pool: %s", said)
	}
	p.exits(0, "pool", "create", "--data-size", "64M", "--base-size", "32M", "--min-free", "none")
	defer p.exits(0, "pool", "destroy", "--force")

	socket := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	deadline, _ := p.ctx.Deadline()
	if err := l.SetReadDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	hears := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		for {
			n, err := l.Read(b)
			if err != nil {
				t.Fatalf("systemd was not told %s: %v", want, err)
			}
			if strings.Contains("\n"+string(b[:n])+"\n", "\n"+want+"\n") {
				return
			}
		}
	}
	serve := p.command("serve", "--docker=", "--containerd=")
	serve.Env = append(serve.Env, "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=20000")
	var log bytes.Buffer
	serve.Stderr = &log
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	hears("READY=1")
	hears("WATCHDOG=1")
	if said := p.exits(5, "serve", "--docker=", "--containerd="); !strings.Contains(said, "process "+strconv.Itoa(serve.Process.Pid)) {
		t.Errorf("a second service: %s", said)
	}
	signal := func(s syscall.Signal) {
		t.Helper()
		if err := serve.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	signal(syscall.SIGHUP)
	hears("WATCHDOG=1")
	p.exits(0, "pool", "set", "--grow-at", "70")
	p.exits(0, "pool", "extend", "--data", "+64M")
	signal(syscall.SIGTERM)
	hears("STOPPING=1")
	if err := serve.Wait(); err != nil {
		t.Errorf("after SIGTERM: %v\n%s", err, &log)
	}
	if !strings.Contains(log.String(), "msg=serving") {
		t.Errorf("it logged\n%s", &log)
	}
}
