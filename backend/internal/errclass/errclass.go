// Package errclass says to containerd what class an error of ours is.
package errclass

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// classes are what this module's classes of errors are to containerd. Its garbage collector goes on after ErrFailedPrecondition, and tries again
// when it runs the next time.
var classes = []struct{ ours, theirs error }{
	{errs.ErrInvalid, errdefs.ErrInvalidArgument},
	{errs.ErrNotFound, errdefs.ErrNotFound},
	{errs.ErrExists, errdefs.ErrAlreadyExists},
	{errs.ErrBusy, errdefs.ErrFailedPrecondition},
	{errs.ErrNoSpace, errdefs.ErrResourceExhausted},
	{errs.ErrDamaged, errdefs.ErrDataLoss},
	{errs.ErrUnsupported, errdefs.ErrNotImplemented},
}

// Translated gives an error the class by which containerd knows it, and the hint, which has no other way to the user.
func Translated(err error) error {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	if errdefs.Resolve(err) != errdefs.ErrUnknown {
		return err
	}
	class := errs.Class(err)
	hint := errs.Hint(err)
	if hint != "" {
		hint = " (" + hint + ")"
	}
	for _, c := range classes {
		if c.ours == class {
			return fmt.Errorf("%w%s: %w", err, hint, c.theirs)
		}
	}
	return err
}
