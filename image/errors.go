package image

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// The classes of this package's errors. Compare with errors.Is.
var (
	ErrInvalid     = errs.ErrInvalid
	ErrNotFound    = errs.ErrNotFound
	ErrExists      = errs.ErrExists
	ErrBusy        = errs.ErrBusy
	ErrNoSpace     = errs.ErrNoSpace
	ErrDamaged     = errs.ErrDamaged
	ErrUnsupported = errs.ErrUnsupported
)

// errMissing marks a file that an archive names and does not have. It never leaves the package without
// ErrDamaged beside it.
var errMissing = errors.New("not in the archive")

// errGone says that the bytes of a stream that are needed once more were let go.
var errGone = errs.WithHint(fmt.Errorf("image archive: a layer was removed that has come by: %w", ErrBusy), "load the stream again")

func damaged(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrDamaged)...)
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf(format+": %w", append(args, ErrUnsupported)...)
}

// classify gives a full file system its class, so that the caller need not know errnos.
func classify(err error) error {
	if err == nil || errs.Class(err) != nil {
		return err
	}
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: %w", err, ErrNoSpace)
	}
	return err
}
