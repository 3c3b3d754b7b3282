package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// The exit codes that have no class of error.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitSignal = 128 // plus the number of the signal
)

// exits maps the classes of errors to exit codes and to the codes of JSON errors. It is the only
// place that does.
var exits = []struct {
	class   error
	code    int
	name    string
	meaning string
}{
	{errs.ErrInvalid, exitUsage, "usage", "wrong usage, nothing was done"},
	{errs.ErrNotFound, 3, "not-found", "no such thing"},
	{errs.ErrExists, 4, "exists", "the name is taken"},
	{errs.ErrBusy, 5, "busy", "in use"},
	{errs.ErrNoSpace, 6, "no-space", "no space in the pool, its metadata or on the host"},
	{errs.ErrDamaged, 7, "damaged", "needs a check, wrong pool, or not trusted"},
	{errs.ErrUnsupported, 8, "unsupported", "no device-mapper, a missing tool, too old a kernel"},
}

// usageError is a mistake in the command line itself.
type usageError struct{ message, hint string }

func (e *usageError) Error() string        { return e.message }
func (e *usageError) Is(target error) bool { return target == errs.ErrInvalid }

func usagef(format string, args ...any) error {
	return &usageError{message: fmt.Sprintf(format, args...)}
}

// multiError is what went wrong with several names. The first decides the exit code.
type multiError []error

func (m multiError) Error() string {
	texts := make([]string, len(m))
	for i, err := range m {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (m multiError) Unwrap() error { return m[0] }

// forEach calls fn with every name, goes on after errors, and returns all of them. It stops early
// only when the context ends.
func forEach(ctx context.Context, names []string, fn func(name string) error) error {
	var failed multiError
	for _, name := range names {
		if ctx.Err() != nil {
			failed = append(failed, fmt.Errorf("%s: not begun: %w", name, context.Cause(ctx)))
			break
		}
		if err := fn(name); err != nil {
			failed = append(failed, err)
		}
	}
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return failed[0]
	}
	return failed
}

// exitCode maps an error to the exit code and to the code of a JSON error. cause is why the context
// ended, or nil.
func exitCode(err, cause error) (code int, name string) {
	if err == nil {
		return exitDone, ""
	}
	if sig := (interrupted{}); errors.As(cause, &sig) {
		return exitSignal + int(sig.signal), "interrupted"
	}
	class := errs.Class(err)
	for _, e := range exits {
		if e.class == class {
			return e.code, e.name
		}
	}
	return exitFailed, "failed"
}

// report prints err and returns the exit code.
func (a *app) report(err, cause error, asJSON bool) int {
	code, name := exitCode(err, cause)
	if code == exitDone {
		return code
	}
	all := multiError{err}
	if m := (multiError)(nil); errors.As(err, &m) {
		all = m
	}
	if asJSON {
		a.printJSONError(name, all, cause)
		return code
	}
	var hints []string
	for _, err := range all {
		fmt.Fprintf(a.err, "dmlayer: %s\n", message(err, cause))
		if hint := hintOf(err, cause); hint != "" && !slices.Contains(hints, hint) {
			hints = append(hints, hint)
		}
	}
	for _, hint := range hints {
		fmt.Fprintf(a.err, "hint: %s\n", hint)
	}
	return code
}

func (a *app) printJSONError(name string, all multiError, cause error) {
	type body struct {
		Code    string `json:"code"`
		Message string `json:"message"`
		Hint    string `json:"hint"`
	}
	b := body{Code: name, Hint: hintOf(all[0], cause)}
	texts := make([]string, len(all))
	for i, err := range all {
		texts[i] = message(err, cause)
	}
	b.Message = strings.Join(texts, "; ")
	enc := json.NewEncoder(a.err)
	enc.SetEscapeHTML(false)
	// Standard error is all there is to complain to.
	_ = enc.Encode(map[string]body{"error": b})
}

// message is err on one line, with why the context ended where that is what ended the command. Names in it
// may come from anywhere.
func message(err, cause error) string {
	text := printable(strings.TrimSpace(strings.ReplaceAll(err.Error(), "\n", "; ")))
	switch {
	case cause == nil || errors.Is(err, cause):
		return text
	case errors.As(cause, &interrupted{}), errors.Is(cause, errTimeout) && errs.Class(err) == nil:
		return fmt.Sprintf("%s: %s", cause, text)
	}
	return text
}

func hintOf(err, cause error) string {
	if hint := errs.Hint(err); hint != "" {
		return hint
	}
	if u := (*usageError)(nil); errors.As(err, &u) {
		return u.hint
	}
	switch {
	case errors.As(err, new(*rootNeeded)):
		return "run as root"
	case errors.Is(cause, errTimeout) && errs.Class(err) == nil:
		return "what was begun has been undone; give it more time with --timeout, or none with --timeout 0"
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return "run as root"
	}
	return ""
}
