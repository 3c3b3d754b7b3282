package devmapper

import (
	"errors"
	"strings"
	"syscall"
)

var (
	// ErrNotFound is returned when no device has the name, uuid or number.
	ErrNotFound = errors.New("no such device-mapper device")
	// ErrExists is returned when a name or uuid is taken already.
	ErrExists = errors.New("device-mapper name or uuid is taken")
	// ErrBusy is returned when a device is in use: removed while open, loaded
	// over a device that somebody holds exclusively, suspended while its file
	// system is frozen by somebody else.
	ErrBusy = errors.New("device is busy")
	// ErrInvalid is returned for a name, table or argument that cannot be
	// right, found by this package or by the kernel. The kernel says more in
	// its log.
	ErrInvalid = errors.New("invalid argument")
	// ErrUnsupported is returned where the kernel has no device-mapper, or
	// one that is too old for the operation.
	ErrUnsupported = errors.New("not supported by this kernel")
	// ErrPermission is returned where the process may not use the
	// device-mapper: it takes CAP_SYS_ADMIN in the initial user namespace.
	ErrPermission = errors.New("permission denied")
	// ErrBadReply is returned when an answer cannot be understood.
	ErrBadReply = errors.New("malformed reply")
	// ErrInterrupted is returned, with the context's own error, when a
	// context ended an operation before the kernel had finished it.
	ErrInterrupted = errors.New("interrupted")
)

// Error is a failed operation.
//
// [errors.Is] finds the errno, the sentinel of this package that it stands
// for in this operation, and what Err wraps.
type Error struct {
	Op     string        // "create", "remove", "load", "suspend" ...
	Device string        // how the caller named the device; may be empty
	Errno  syscall.Errno // what the kernel said, 0 where Err has the cause
	Err    error         // a cause that is no errno, or nil
	Hint   string        // what is known beyond the errno, or empty
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("devmapper: ")
	b.WriteString(e.Op)
	if e.Device != "" {
		b.WriteString(" ")
		b.WriteString(e.Device)
	}
	switch {
	case e.Err != nil:
		b.WriteString(": ")
		b.WriteString(strings.TrimPrefix(e.Err.Error(), "devmapper: "))
	case e.Errno != 0:
		b.WriteString(": ")
		b.WriteString(errnoText(e.Errno))
	}
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteString(")")
	}
	return b.String()
}

// errnoText is what an errno says, and of those that targets with metadata of
// their own (thin, cache, era) give another meaning to, what they mean.
func errnoText(errno syscall.Errno) string {
	switch errno {
	case syscall.EILSEQ:
		return "wrong checksum in a block of the target's metadata"
	case syscall.ENOTBLK:
		return "a block of the target's metadata is blank, or another one"
	}
	return errno.Error()
}

// Unwrap gives the errno and the other cause, whichever there are.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Errno != 0 {
		errs = append(errs, e.Errno)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// Is maps the errno to this package's sentinels. The operation decides: EBUSY
// of a creation means that the name is taken.
func (e *Error) Is(target error) bool {
	return e.Errno != 0 && target == sentinelOf(e.Op, e.Errno)
}

func sentinelOf(op string, errno syscall.Errno) error {
	switch errno {
	case syscall.ENXIO:
		if op == opOpen {
			return ErrUnsupported
		}
		return ErrNotFound
	case syscall.ENOENT, syscall.ENODEV:
		if op == opOpen {
			return ErrUnsupported
		}
	case syscall.EBUSY:
		if op == opCreate || op == opRename || op == opSetUUID {
			return ErrExists
		}
		return ErrBusy
	case syscall.EINVAL:
		if op == opTargetVersion {
			return ErrUnsupported // the kernel's word for "no such target"
		}
		return ErrInvalid
	case syscall.ENOTTY, syscall.ENOSYS:
		return ErrUnsupported
	case syscall.EACCES, syscall.EPERM:
		return ErrPermission
	}
	return nil
}

const (
	opOpen           = "open"
	opCreate         = "create"
	opRemove         = "remove"
	opCancelRemove   = "cancel deferred removal of"
	opRename         = "rename"
	opSetUUID        = "set uuid of"
	opSuspend        = "suspend"
	opResume         = "resume"
	opInfo           = "info"
	opLoad           = "load table of"
	opClear          = "clear table of"
	opTable          = "table of"
	opStatus         = "status of"
	opDeps           = "deps of"
	opMessage        = "message to"
	opList           = "list devices"
	opTargetVersions = "list target versions"
	opTargetVersion  = "version of target"
	opVersion        = "version"
	opEvents         = "watch events"
)
