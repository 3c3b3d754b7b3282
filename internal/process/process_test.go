package process_test

import (
	"errors"
	"os"
	"os/exec"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/process"
)

func TestIdentity(t *testing.T) {
	own, err := process.Identify(os.Getpid())
	if err != nil || own.Dead() {
		t.Errorf("this process: %q, %v", own, err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	child, err := process.Identify(cmd.Process.Pid)
	if err != nil || child.Dead() || child == own {
		t.Errorf("a child: %q, %v", child, err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for !child.Dead() { // first nobody has waited for it
	}
	_ = cmd.Wait()
	if !child.Dead() {
		t.Error("not dead")
	}
	if _, err := process.Identify(cmd.Process.Pid); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("a dead one: %v", err)
	}
	// An id that is used again.
	if again := own + "1"; !again.Dead() {
		t.Errorf("%q is not dead", again)
	}
	for _, bad := range []process.Identity{"", "x", "1", "-1-1", "0-0", "1-x"} {
		if bad.Dead() {
			t.Errorf("%q is dead", bad)
		}
	}
}
