// Package process tells whether a process of some time ago is still the same one: process ids are used again.
package process

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// Identity names a process as long as the machine runs: its id and when it began, in the kernel's ticks since the start of the machine. "" is nobody.
type Identity string

// Identify returns the identity of the process that has an id now. ErrNotFound says that there is none, or that it has died and nobody has waited for it.
func Identify(pid int) (Identity, error) {
	path := "/proc/" + strconv.Itoa(pid) + "/stat"
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return "", fmt.Errorf("process %d: %w", pid, errs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("process %d: %w", pid, err)
	}
	// The name, in parentheses, may contain anything (proc(5)).
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	const state, started = 0, 19
	if len(fields) <= started {
		return "", fmt.Errorf("%s: %q: %w", path, b, errs.ErrInvalid)
	}
	if s := fields[state][0]; s == 'Z' || s == 'X' {
		return "", fmt.Errorf("process %d: it has ended: %w", pid, errs.ErrNotFound)
	}
	return Identity(strconv.Itoa(pid) + "-" + string(fields[started])), nil
}

// Dead says that a process has ended for sure. Of nobody, and of what is no identity, it does not.
func (i Identity) Dead() bool {
	var pid int
	var started uint64
	if n, err := fmt.Sscanf(string(i), "%d-%d", &pid, &started); n != 2 || err != nil || pid <= 0 {
		return false
	}
	now, err := Identify(pid)
	return errors.Is(err, errs.ErrNotFound) || err == nil && now != i
}
