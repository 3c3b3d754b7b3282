package terminal

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

func TestScreen(t *testing.T) {
	for in, want := range map[string]string{
		"one\r\ntwo\r\n":                    "one\ntwo\n",
		"one\rtw":                           "twe",
		"1\r\n2\r\n3\r\n\x1b[2A\x1b[Jx\r\n": "1\nx\n",
		"abc\r\x1b[Kd":                      "d",
		"1234567890ab":                      "1234567890\nab",
		"1234567890\r\nab":                  "1234567890\nab",
		"1\r\n2\r\n3\r\n4\r\n5\r\n\x1b[9A!": "1\n2\n3\n!\n5\n", // the first lines have scrolled away
		"ä…":                                "ä…",
		"\x1b[31mred":                       "�red",
	} {
		whole, pieces := newScreen(10, 3), newScreen(10, 3)
		whole.write([]byte(in))
		for i := range len(in) {
			pieces.write([]byte{in[i]})
		}
		if whole.String() != want || pieces.String() != want {
			t.Errorf("%q: %q, in pieces %q, want %q", in, whole, pieces, want)
		}
	}
}

// TestTerminal has a shell that ^C ends.
func TestTerminal(t *testing.T) {
	term, err := Open(40, 10)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/bin/sh", "-c", "stty size; read x")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.File, term.File, term.File
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(time.Minute))
	defer cancel()
	if err := term.Wait(ctx, func(s string) bool { return strings.Contains(s, "10 40\n") }); err != nil {
		t.Error(err)
	}
	if err := term.Type("\x03"); err != nil {
		t.Error(err)
	}
	if err := cmd.Wait(); err == nil || cmd.ProcessState.Sys().(syscall.WaitStatus).Signal() != syscall.SIGINT {
		t.Errorf("the shell ended with %v", err)
	}
	shown, raw, err := term.End()
	if err != nil || shown != "10 40\n^C" || raw != "10 40\r\n^C" {
		t.Errorf("%q, %q (%v)", shown, raw, err)
	}
}
