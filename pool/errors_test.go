package pool

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool"
)

// What the kernel says of blocks gets a class and a hint, and what it says of the way to a disk is not taken for a block that is bad.
func TestKernelError(t *testing.T) {
	said := func(errno unix.Errno) error { return fmt.Errorf("read: %w", errno) }
	for _, c := range []struct {
		err     error
		bad     bool // a block, that a repair goes past
		class   error
		foreign error // where it may be of what a user gave
	}{
		{said(unix.EIO), true, errs.ErrDamaged, nil},
		{said(unix.ENODATA), true, errs.ErrDamaged, nil},
		{said(unix.EILSEQ), true, errs.ErrDamaged, nil},
		{said(unix.EREMOTEIO), true, errs.ErrDamaged, nil},
		{said(unix.ETIMEDOUT), true, errs.ErrDamaged, nil},
		{said(unix.EBADE), false, nil, nil},   // reserved for somebody else
		{said(unix.ENOLINK), false, nil, nil}, // no path to it
		{io.ErrUnexpectedEOF, false, nil, nil},
		{fmt.Errorf("activate: %w: %w", thinpool.ErrDamaged, &devmapper.Error{Op: "load", Errno: unix.ENOTBLK}), false, errs.ErrDamaged, errs.ErrDamaged},
		{fmt.Errorf("read: %w: %w", errs.ErrBusy, unix.EIO), true, errs.ErrBusy, errs.ErrBusy},
	} {
		inside, outside := kernelError(c.err), KernelError(c.err)
		if badBlock(c.err) != c.bad || !errors.Is(errs.Class(inside), c.class) || !errors.Is(errs.Class(outside), c.foreign) {
			t.Errorf("%v: bad block %v, class %v, for others %v", c.err, badBlock(c.err), errs.Class(inside), errs.Class(outside))
		}
		if errors.Is(c.class, errs.ErrDamaged) && errs.Hint(inside) == "" {
			t.Errorf("%v: no hint", c.err)
		}
	}
}
