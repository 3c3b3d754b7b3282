package fsutil

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

// Mount mounts the file system on dev at dir. Beside the caller's options, ext4 gets errors=remount-ro and
// noinit_itable, xfs gets nouuid and, where it is writable, is told not to retry writes for ever on a full
// pool (else it is unmounted again and the error returned). Access times are the kernel's default, relatime.
//
// A dirty journal is replayed, also read-only, unless the device itself is read-only.
func Mount(ctx context.Context, dev, dir string, o MountOptions) error {
	what := fmt.Sprintf("mount %s on", dev)
	if err := context.Cause(ctx); err != nil {
		return fail(what, dir, err)
	}
	p, err := o.parsed()
	if err != nil {
		return fail(what, dir, err)
	}
	err = retryEINTR(func() error {
		return unix.Mount(dev, dir, string(o.Type), p.Flags, strings.Join(p.Data, ","))
	})
	if err != nil {
		return mountError(what, dir, o.Type, err)
	}
	if o.Type == XFS && !p.ReadOnly() {
		if err := stopRetriesOf(dir); err != nil {
			return fail(what, dir, errors.Join(err, Unmount(context.WithoutCancel(ctx), dir, UnmountOptions{})))
		}
	}
	return nil
}

// mountError explains what mount(2) and fsconfig(2) mean by an errno.
func mountError(what, dir string, t Type, err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return errs.WithHint(fail(what, dir, err), "the kernel lacks this file system: modprobe "+string(t))
	case errors.Is(err, unix.EINVAL):
		return errs.WithHint(fail(what, dir, err),
			fmt.Sprintf("a mount option that %s does not know, or no %s on the device; see the kernel log", t, t))
	case errors.Is(err, unix.EROFS):
		return errs.WithHint(fail(what, dir, err), "the device is read-only and the file system wants its journal replayed")
	}
	return fail(what, dir, err)
}

// UnmountOptions says how to unmount.
type UnmountOptions struct {
	// Lazy takes the mount out of sight at once and lets it end with its last user.
	Lazy bool
}

// Unmount unmounts what is mounted at dir. When it returns nil without Lazy and nothing else has the
// file system mounted, its device is closed. It is errs.ErrBusy where somebody uses it, and
// errs.ErrInvalid where nothing is mounted there. A symbolic link is not followed.
func Unmount(ctx context.Context, dir string, o UnmountOptions) error {
	if err := context.Cause(ctx); err != nil {
		return fail("unmount", dir, err)
	}
	flags := unix.UMOUNT_NOFOLLOW
	if o.Lazy {
		flags |= unix.MNT_DETACH
	}
	// Between starts, so that no copy of a descriptor that was closed already makes it busy.
	err := run.BetweenStarts(func() error {
		return retryEINTR(func() error { return unix.Unmount(dir, flags) })
	})
	if errors.Is(err, unix.EINVAL) {
		return errs.WithHint(fail("unmount", dir, err), "nothing is mounted there")
	}
	return fail("unmount", dir, err)
}
