// Package errs holds the classes that every error of dmlayer falls into, and the hint that tells
// the user what to do next.
//
// Packages wrap a class at the place where they know what went wrong:
//
//	return fmt.Errorf("remove node %q: used by %q: %w", name, child, errs.ErrBusy)
//
// The command line maps classes to exit codes in one place. Public packages re-export the classes
// that they return, so that importers never need this package.
package errs

import "errors"

// The classes. Compare with errors.Is. The number behind each is the command line's exit code.
var (
	ErrInvalid     = errors.New("invalid argument")   // 2: the request itself is wrong
	ErrNotFound    = errors.New("not found")          // 3: the named thing does not exist
	ErrExists      = errors.New("already exists")     // 4: the name is taken
	ErrBusy        = errors.New("in use")             // 5: somebody uses it
	ErrNoSpace     = errors.New("no space")           // 6: pool, metadata, host file system or cap
	ErrDamaged     = errors.New("damaged")            // 7: needs a check, wrong pool, untrusted
	ErrUnsupported = errors.New("not supported here") // 8: kernel, module or tool is missing
)

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// WithHint attaches what the user can do next. A nil err stays nil.
func WithHint(err error, hint string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, hint}
}

// Hint returns the outermost hint in err's chain, or "".
func Hint(err error) string {
	var h *hinted
	if errors.As(err, &h) {
		return h.hint
	}
	return ""
}

// Class returns the class in err's chain, or nil. Where an error carries several, the more specific
// one of the outermost wrapping wins only by the order above.
func Class(err error) error {
	for _, class := range []error{ErrInvalid, ErrNotFound, ErrExists, ErrBusy, ErrNoSpace, ErrDamaged, ErrUnsupported} {
		if errors.Is(err, class) {
			return class
		}
	}
	return nil
}
