package vmexec

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// runGuestProcess runs the job to its end and returns its exit code.
func runGuestProcess(j *job) (int, error) {
	path, err := lookPath(j.Args[0], j.Env)
	if err != nil {
		return 127, nilAfterMessage(j, err)
	}
	st, err := openStreams(j)
	if err != nil {
		return 0, err
	}
	proc, err := os.StartProcess(path, j.Args, &os.ProcAttr{
		Dir:   j.Dir,
		Env:   j.Env,
		Files: st.files[:],
		Sys:   &syscall.SysProcAttr{Setsid: true, Setctty: j.Stdin == stdinTTY, Ctty: 0},
	})
	if err != nil {
		st.closeJobSide()
		st.drain()
		return 126, nilAfterMessage(j, err)
	}
	st.closeJobSide()
	code, err := reapUntil(proc.Pid)
	st.drain()
	return code, err
}

// nilAfterMessage tells the user on the job's standard error why the job did not start: to the
// caller that is an exit code of the job, as in a shell.
func nilAfterMessage(j *job, err error) error {
	name := j.Consoles[1]
	if j.Merged || j.Stdin == stdinTTY {
		name = j.Consoles[0]
	}
	f, openErr := openRaw(name)
	if openErr != nil {
		return openErr
	}
	fmt.Fprintf(f, "vmexec: %v\n", err)
	drainTTY(f)
	return f.Close()
}

// streams joins the job's standard files with the consoles.
type streams struct {
	files   [3]*os.File // the job's
	copying sync.WaitGroup
	ttys    []*os.File
}

func openStreams(j *job) (*streams, error) {
	if j.Stdin == stdinTTY {
		return openTerminal(j)
	}
	st := &streams{}
	out, err := st.outputPipe(j.Consoles[0])
	if err != nil {
		return nil, err
	}
	st.files[1], st.files[2] = out, out
	if !j.Merged {
		if st.files[2], err = st.outputPipe(j.Consoles[1]); err != nil {
			return nil, err
		}
	}
	if j.Stdin == stdinNone {
		st.files[0], err = os.Open(os.DevNull)
		return st, err
	}
	in, err := openRaw(j.Consoles[2])
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	st.files[0] = r
	go func() {
		// A job that ends before its input does closes the pipe: that is its right.
		_ = receiveFrames(w, in)
		_ = w.Close()
	}()
	return st, nil
}

// outputPipe returns the writing end of a pipe whose content goes to the console. The job must
// not see a terminal where the user has none.
func (st *streams) outputPipe(console string) (*os.File, error) {
	tty, err := openRaw(console)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	st.ttys = append(st.ttys, tty)
	st.copying.Go(func() { _, _ = io.Copy(onlyWriter{tty}, r) })
	return w, nil
}

// onlyWriter hides ReadFrom: splice into a terminal does not work.
type onlyWriter struct{ io.Writer }

func openTerminal(j *job) (*streams, error) {
	tty, err := os.OpenFile(j.Consoles[0], os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if j.Rows > 0 {
		size := &unix.Winsize{Row: j.Rows, Col: j.Cols}
		if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, size); err != nil {
			return nil, fmt.Errorf("set the size of %s: %w", j.Consoles[0], err)
		}
	}
	if err := announceReader(j); err != nil {
		return nil, err
	}
	return &streams{files: [3]*os.File{tty, tty, tty}, ttys: []*os.File{tty}}, nil
}

// announceReader says that somebody listens on the terminal; see frame.go.
func announceReader(j *job) error {
	f, err := openRaw(j.Consoles[2])
	if err != nil {
		return err
	}
	if _, err := f.Write([]byte{frameAck}); err != nil {
		return err
	}
	drainTTY(f)
	return f.Close()
}

func (st *streams) closeJobSide() {
	for i, f := range st.files {
		isTTY := false
		for _, t := range st.ttys {
			isTTY = isTTY || f == t
		}
		if f != nil && !isTTY && (i == 0 || f != st.files[i-1]) {
			_ = f.Close()
		}
	}
}

// drain waits until the host has all output. A process that the job left behind may hold the
// pipe open for ever: the wait for the copy is bounded.
func (st *streams) drain() {
	done := make(chan struct{})
	go func() {
		st.copying.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
	}
	for _, t := range st.ttys {
		drainTTY(t)
	}
}

func drainTTY(f *os.File) {
	_ = unix.IoctlSetInt(int(f.Fd()), unix.TCSBRK, 1) // tcdrain(3)
}

// openRaw opens a console so that bytes pass through it unchanged in both directions.
func openRaw(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("open console: %w", err)
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("read the settings of %s: %w", name, err)
	}
	makeRaw(t)
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return nil, fmt.Errorf("change the settings of %s: %w", name, err)
	}
	return f, nil
}

// makeRaw is cfmakeraw(3).
func makeRaw(t *unix.Termios) {
	t.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
	t.Oflag &^= unix.OPOST
	t.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
	t.Cflag = t.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
}

// reapUntil collects every child, as PID 1 must, until the one called pid has ended.
func reapUntil(pid int) (int, error) {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return 0, fmt.Errorf("wait for process %d: %w", pid, err)
		case got != pid:
			continue
		case ws.Signaled():
			return 128 + int(ws.Signal()), nil
		default:
			return ws.ExitStatus(), nil
		}
	}
}
