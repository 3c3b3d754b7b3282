package thinpool

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/dmlayer/dmlayer/devmapper"
)

var (
	// ErrExists is returned when a thin id is in use already.
	ErrExists = errors.New("thin id exists")
	// ErrNoDevice is returned when a pool has no thin device with the id.
	ErrNoDevice = errors.New("no such thin id")
	// ErrBusy is returned when a thin device to delete is active, or a second
	// metadata snapshot is asked for.
	ErrBusy = errors.New("in use")
	// ErrReadOnly is returned when a pool refuses a message because it
	// cannot write its metadata; the error is a [*StateError] if the pool's
	// status could be had.
	ErrReadOnly = errors.New("pool is read-only")
	// ErrNeedsCheck is returned, with ErrReadOnly or ErrNotCommitted, when a
	// pool wants its metadata checked offline before it writes again.
	ErrNeedsCheck = errors.New("pool metadata needs a check")
	// ErrNotCommitted is returned when a message went through but the pool
	// has, or may have, failed to write the change down: it may be there or
	// not when the pool is next activated.
	ErrNotCommitted = errors.New("not known to be committed")
	// ErrOutOfSpace is returned when a pool has no room left for what was
	// asked, in its data or in its metadata.
	ErrOutOfSpace = errors.New("pool is out of space")
	// ErrTransactionID is returned by SetTransactionID when the pool is at
	// another id than the one expected.
	ErrTransactionID = errors.New("pool has another transaction id")
	// ErrDamaged is returned, with another error of this package or alone,
	// where a block of the metadata that the kernel read has a wrong
	// checksum, or is another block than it should be.
	ErrDamaged = errors.New("a block of the pool's metadata is damaged")
	// ErrInvalid is returned for arguments and texts that cannot be right.
	ErrInvalid = devmapper.ErrInvalid
	// ErrWrongTarget is returned when a device is no pool, or no thin device.
	ErrWrongTarget = errors.New("device has another target")
)

// StateError says in which state a pool was found that could not do, or may
// not have done, what it was told.
type StateError struct {
	Status PoolStatus
}

func (e *StateError) Error() string {
	s := "pool is in mode " + e.Status.Mode.String()
	if e.Status.NeedsCheck {
		s += " and needs a check"
	}
	if e.Status.metadataFull() {
		s += fmt.Sprintf(", its metadata is full (%d of %d blocks)", e.Status.UsedMetadata, e.Status.TotalMetadata)
	}
	return s
}

// Is finds ErrReadOnly, ErrNeedsCheck, and ErrOutOfSpace where the metadata
// is used up.
func (e *StateError) Is(target error) bool {
	switch target {
	case ErrReadOnly:
		return e.Status.Mode == ModeReadOnly || e.Status.Mode.broken()
	case ErrNeedsCheck:
		return e.Status.NeedsCheck
	case ErrOutOfSpace:
		return e.Status.metadataFull()
	}
	return false
}

// damagedBlock tells whether the kernel's validators have refused a block: for
// a checksum that is wrong, or for a number that is not the block's own.
func damagedBlock(err error) bool {
	return errors.Is(err, syscall.EILSEQ) || errors.Is(err, syscall.ENOTBLK)
}

// opError is "what: class: cause".
func opError(what string, class, cause error) error {
	if damagedBlock(cause) && !errors.Is(cause, ErrDamaged) {
		cause = fmt.Errorf("%w: %w", ErrDamaged, cause)
	}
	if class == nil {
		return fmt.Errorf("thinpool: %s: %w", what, cause)
	}
	return fmt.Errorf("thinpool: %s: %w: %w", what, class, cause)
}

// messageClass is the meaning of a pool's answer to a message.
func messageClass(err error) error {
	switch {
	case errors.Is(err, syscall.EEXIST):
		return ErrExists
	case errors.Is(err, errNoData):
		return ErrNoDevice
	case errors.Is(err, syscall.EBUSY):
		return ErrBusy
	case errors.Is(err, syscall.ENOSPC):
		return ErrOutOfSpace
	case errors.Is(err, syscall.EOPNOTSUPP):
		return ErrReadOnly
	}
	return nil
}
