package pool

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool"
)

// ErrAbsent says that a disk or volume of the pool is not there. It may come: disks are found in any order after a boot.
var ErrAbsent = errors.New("a device of the pool is not there")

// missingError is an ErrAbsent that says which. Its class is up to whoever returns it.
type missingError struct{ text string }

func (e *missingError) Error() string { return e.text }

// Is makes it an ErrAbsent.
func (e *missingError) Is(target error) bool { return target == ErrAbsent }

// absent is a missingError of a pool that is here: ErrDamaged, as what it lies on is not.
func absent(format string, args ...any) error {
	return fmt.Errorf("%w: %w", &missingError{fmt.Sprintf(format, args...)}, errs.ErrDamaged)
}

// kernelError gives an error of the kernel packages, which know no classes, its class. What could not be read or written is the pool's
// own, or the disk's that it lies on.
func kernelError(err error) error {
	if err = KernelError(err); badBlock(err) && errs.Class(err) == nil {
		return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrDamaged), DiskHint)
	}
	return err
}

// DiskHint is what to do about an I/O error of a pool: the kernel gives one also where a block of the metadata is damaged, and only its log
// tells one from the other.
const DiskHint = "dmlayer pool check says whether the metadata is damaged, and with --repair has it repaired; else a disk under the pool fails: dmesg says which"

// RoomHint is what to do about a pool that has no room.
const RoomHint = "make it larger (dmlayer pool extend), or remove nodes (dmlayer rm) or layers that nothing uses (dmlayer prune)"

// badBlock tells whether somebody could not read, or write, a block of a disk. That a disk is not reached any more, or is reserved for
// somebody else, says nothing of the block.
func badBlock(err error) bool {
	for _, e := range []unix.Errno{
		unix.EIO, unix.ENODATA, // what most drivers say, and of a block that the medium has lost
		unix.EILSEQ,    // protection information that is wrong
		unix.EREMOTEIO, // "target failure"
		unix.ETIMEDOUT, // a disk that tries again and again
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// KernelError is kernelError for package layer, where an I/O error may be of what a user gave.
func KernelError(err error) error {
	if err == nil || errs.Class(err) != nil {
		return err
	}
	wrap := func(class error, hint string) error {
		return errs.WithHint(fmt.Errorf("%w: %w", err, class), hint)
	}
	switch {
	case errors.Is(err, thinpool.ErrOutOfSpace), errors.Is(err, unix.ENOSPC):
		return wrap(errs.ErrNoSpace, RoomHint)
	case errors.Is(err, thinpool.ErrNotCommitted), errors.Is(err, thinpool.ErrTransactionID), errors.Is(err, thinpool.ErrReadOnly),
		errors.Is(err, thinpool.ErrDamaged):
		return wrap(errs.ErrDamaged, "dmlayer pool check says what is wrong, and with --repair has it repaired")
	case errors.Is(err, devmapper.ErrPermission):
		return errs.WithHint(err, "run it as root, in the initial user namespace")
	case errors.Is(err, devmapper.ErrUnsupported):
		return wrap(errs.ErrUnsupported, "dmlayer doctor tells what this machine lacks; modprobe dm-thin-pool")
	case errors.Is(err, devmapper.ErrBusy), errors.Is(err, thinpool.ErrBusy):
		return wrap(errs.ErrBusy, "")
	case errors.Is(err, devmapper.ErrNotFound), errors.Is(err, thinpool.ErrNoDevice):
		return wrap(errs.ErrNotFound, "")
	}
	return err
}
