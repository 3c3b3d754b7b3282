package fsutil

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// classed adds a class to an error without a word in its text: the errno says it already.
type classed struct {
	error
	class error
}

func (c *classed) Unwrap() []error { return []error{c.error, c.class} }

// classes maps what the kernel says to what it means for the user.
var classes = map[unix.Errno]error{
	unix.ENOSPC:     errs.ErrNoSpace,
	unix.EDQUOT:     errs.ErrNoSpace,
	unix.EFBIG:      errs.ErrNoSpace,
	unix.EBUSY:      errs.ErrBusy,
	unix.ETXTBSY:    errs.ErrBusy,
	unix.ENOENT:     errs.ErrNotFound,
	unix.ENXIO:      errs.ErrNotFound,
	unix.EEXIST:     errs.ErrExists,
	unix.EINVAL:     errs.ErrInvalid,
	unix.ENOTDIR:    errs.ErrInvalid,
	unix.EISDIR:     errs.ErrInvalid,
	unix.ENOTBLK:    errs.ErrInvalid,
	unix.ELOOP:      errs.ErrInvalid,
	unix.EUCLEAN:    errs.ErrDamaged,
	unix.EBADMSG:    errs.ErrDamaged,
	unix.ENODEV:     errs.ErrUnsupported,
	unix.ENOSYS:     errs.ErrUnsupported,
	unix.ENOTTY:     errs.ErrUnsupported,
	unix.EOPNOTSUPP: errs.ErrUnsupported,
	unix.EPERM:      errs.ErrUnsupported,
	unix.EACCES:     errs.ErrUnsupported,
}

// fail wraps err with the operation and its object, and adds class and hint where the errno in err has
// one and err has none yet.
func fail(op, object string, err error) error {
	if err == nil {
		return nil
	}
	err = fmt.Errorf("%s %s: %w", op, object, err)
	var errno unix.Errno
	if errs.Class(err) != nil || !errors.As(err, &errno) {
		return err
	}
	class, ok := classes[errno]
	if !ok {
		return err
	}
	err = &classed{err, class}
	switch errno {
	case unix.EPERM, unix.EACCES:
		err = errs.WithHint(err, "run as root (CAP_SYS_ADMIN in the initial user namespace)")
	case unix.ENOSPC, unix.EDQUOT:
		err = errs.WithHint(err, "free some space on the file system or choose a smaller size")
	}
	return err
}

// retryEINTR repeats a system call that a signal interrupted.
func retryEINTR(f func() error) error {
	for {
		if err := f(); err != unix.EINTR {
			return err
		}
	}
}
