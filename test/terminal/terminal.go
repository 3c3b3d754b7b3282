// Package terminal gives tests a terminal, and shows what a person would see on it.
package terminal

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal.
type Terminal struct {
	File *os.File // what programs take for their terminal

	master *os.File
	done   chan struct{} // nothing more will come

	mu      sync.Mutex
	raw     strings.Builder
	screen  *screen
	arrived chan struct{} // closed when something has come
}

// Open makes a terminal of a size, in characters.
func Open(columns, rows int) (*Terminal, error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open a pseudo-terminal: %w", err)
	}
	master := os.NewFile(uintptr(fd), "/dev/ptmx") // non-blocking: closing it ends a read
	file, err := openOther(fd, columns, rows)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open a pseudo-terminal: %w", err), master.Close())
	}
	t := &Terminal{File: file, master: master, done: make(chan struct{}), screen: newScreen(columns, rows), arrived: make(chan struct{})}
	go t.read()
	return t, nil
}

// openOther opens the program's end of a pseudo-terminal.
func openOther(master, columns, rows int) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, err
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, err
	}
	size := &unix.Winsize{Col: uint16(columns), Row: uint16(rows)}
	if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, size); err != nil {
		return nil, err
	}
	return os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
}

func (t *Terminal) read() {
	defer close(t.done)
	buf := make([]byte, 4096)
	for {
		n, err := t.master.Read(buf)
		t.mu.Lock()
		t.raw.Write(buf[:n])
		t.screen.write(buf[:n])
		close(t.arrived)
		t.arrived = make(chan struct{})
		t.mu.Unlock()
		if err != nil { // EIO once no program has it open any more
			return
		}
	}
}

// Wait returns when everything has arrived that wanted asks for of what a person sees.
func (t *Terminal) Wait(ctx context.Context, wanted func(screen string) bool) error {
	for {
		t.mu.Lock()
		text, arrived := t.screen.String(), t.arrived
		t.mu.Unlock()
		if wanted(text) {
			return nil
		}
		select {
		case <-arrived:
		case <-t.done:
			return fmt.Errorf("the terminal ended, and showed %q: %w", text, io.ErrUnexpectedEOF)
		case <-ctx.Done():
			return fmt.Errorf("the terminal shows %q: %w", text, ctx.Err())
		}
	}
}

// Type types a text.
func (t *Terminal) Type(text string) error {
	_, err := t.master.WriteString(text)
	return err
}

// End closes the terminal, once no other process has it open, and returns what a person sees at the end,
// with all that has scrolled away, and the bytes that came.
func (t *Terminal) End() (screen, raw string, err error) {
	err = t.File.Close()
	<-t.done
	return t.screen.String(), t.raw.String(), errors.Join(err, t.master.Close())
}
