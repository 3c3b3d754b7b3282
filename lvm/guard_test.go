package lvm

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
)

const partVar = "LVM_TEST_PART"

// The test binary is also the process that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(partVar); dir != "" {
		_, err := slowClient(dir).command(context.Background(), "lvcreate")
		if err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// slowClient has a program that says in a pipe that it has begun, waits for the word in another one, and then makes something; asked for
// volumes, it shows that. Like lvm2, it closes all descriptors that it was not meant to have.
func slowClient(dir string) *Client {
	c := &Client{program: filepath.Join(dir, "lvm")}
	return c.Guarded(Guard{File: lockfile.Open(filepath.Join(dir, "lock")), Range: lockfile.Range{Start: 7, Len: 1}})
}

const slowScript = `#!/bin/sh
cd "${0%/*}"
case $1 in
lvcreate) exec 3<&- 4<&- 5<&- 6<&- 7<&- 8<&- 9<&-; echo >begun; read word <go; echo >made ;;
lvs) ls ;;
esac
`

func startSlow(t *testing.T) (dir string, killed func()) {
	t.Helper()
	dir = t.TempDir()
	for _, err := range []error{
		syscall.Mkfifo(filepath.Join(dir, "begun"), 0o600), syscall.Mkfifo(filepath.Join(dir, "go"), 0o600),
		os.WriteFile(filepath.Join(dir, "lvm"), []byte(slowScript), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), partVar+"="+dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	begun, err := os.Open(filepath.Join(dir, "begun")) // waits for the program
	if err != nil {
		t.Fatal(err)
	}
	_, _ = io.ReadAll(begun)
	_ = begun.Close()
	return dir, func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func letGo(t *testing.T, dir string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, "go"), []byte("on\n"), 0); err != nil {
		t.Fatal(err)
	}
}

// What a killed process had lvm2 do is seen by the next look: it waits for it.
func TestOrphanIsWaitedFor(t *testing.T) {
	somewhere(t, true, nil)
	dir, kill := startSlow(t)
	kill()
	c := slowClient(dir)
	if held, err := c.guard.File.Held(c.guard.Range); err != nil || !held {
		t.Fatalf("held: %t, %v", held, err)
	}
	seen := make(chan string, 1)
	go func() {
		out, err := c.ask(t.Context(), "lvs")
		seen <- strings.Join(strings.Fields(string(out)), " ") + errText(err)
	}()
	letGo(t, dir)
	if got := <-seen; got != "begun go lock lvm made" {
		t.Errorf("saw %q", got)
	}
}

// One that does not end is an error and no hang.
func TestOrphanThatStays(t *testing.T) {
	somewhere(t, true, nil)
	dir, kill := startSlow(t)
	kill()
	defer func(old time.Duration) { patience = old }(patience)
	patience = time.Millisecond
	_, err := slowClient(dir).ask(t.Context(), "lvs")
	if !errors.Is(err, errs.ErrBusy) || errs.Hint(err) == "" {
		t.Errorf("%v, hint %q", err, errs.Hint(err))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := slowClient(dir).ask(ctx, "lvs"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	letGo(t, dir)
	patience = time.Minute
	if _, err := slowClient(dir).ask(t.Context(), "lvs"); err != nil {
		t.Error(err)
	}
}

func errText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
