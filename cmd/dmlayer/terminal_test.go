package main_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/terminal"
)

func cmdTerminal(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: terminal CODE COMMAND...")
	}
	term, cmd := onTerminal(ts, args[1:])
	endOnTerminal(ts, term, cmd, args[0])
}

func cmdTerminalType(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: terminal-type CODE TEXT ANSWER COMMAND...")
	}
	term, cmd := onTerminal(ts, args[3:])
	ts.Check(cmd.Start())
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
	defer cancel()
	seen := term.Wait(ctx, func(screen string) bool { return strings.Contains(screen, args[1]) })
	typed := term.Type(args[2] + "\r")
	endOnTerminal(ts, term, cmd, args[0])
	ts.Check(errors.Join(seen, typed))
}

func cmdTerminalStop(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 4 {
		ts.Fatalf("usage: terminal-stop CODE TEXT FILE COMMAND...")
	}
	archive, err := os.ReadFile(ts.MkAbs(args[2]))
	ts.Check(err)
	term, cmd := onTerminal(ts, args[3:])
	out, in, err := os.Pipe()
	ts.Check(err)
	cmd.Stdin = out
	ts.Check(cmd.Start())
	ts.Check(out.Close())
	fed := make(chan error, 1)
	go func() {
		_, err := in.Write(archive[:len(archive)/2])
		fed <- err
	}()
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
	defer cancel()
	seen := term.Wait(ctx, func(screen string) bool { return strings.Contains(screen, args[1]) })
	typed := term.Type("\x03")
	endOnTerminal(ts, term, cmd, args[0])
	if err := <-fed; !errors.Is(err, syscall.EPIPE) { // it may end before it has taken all of it
		ts.Check(err)
	}
	ts.Check(errors.Join(seen, typed, in.Close()))
}

// onTerminal prepares a command whose streams are a terminal of its own.
func onTerminal(ts *testscript.TestScript, args []string) (*terminal.Terminal, *exec.Cmd) {
	term, err := terminal.Open(80, 24)
	ts.Check(err)
	cmd := command(ts, args)
	cmd.Env = append(cmd.Env, "TERM=xterm")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = term.File, term.File, term.File
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 1}
	return term, cmd
}

// endOnTerminal runs a command to its end, and prints what is left to be seen.
func endOnTerminal(ts *testscript.TestScript, term *terminal.Terminal, cmd *exec.Cmd, code string) {
	var err error
	if cmd.Process == nil {
		err = cmd.Run()
	} else {
		err = cmd.Wait()
	}
	screen, _, endErr := term.End()
	_, printErr := io.WriteString(ts.Stdout(), screen)
	ts.Check(errors.Join(endErr, printErr))
	checkExit(ts, code, err)
}
