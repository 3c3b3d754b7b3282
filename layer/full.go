package layer

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/thinpool"
)

// hostReserve is how little room on the host's file system makes it the likely cause of an I/O error.
const hostReserve = 8 << 20

// explainFull gives an error its class where it came from a pool or a host file system that has no room,
// from a pool that cannot commit any more, or from a disk: the file system on top only saw an I/O error.
func (o *op) explainFull(err error) error {
	if err == nil || !(errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EROFS)) {
		return err
	}
	st, serr := o.Thin.Status()
	switch {
	case serr != nil:
	case !st.Commits():
		o.Status = st
		return fmt.Errorf("%w: %w", err, o.Writable())
	case st.Mode == thinpool.ModeOutOfDataSpace:
		return errs.WithHint(fmt.Errorf("%w: pool %q is out of data space: %w", err, o.s.pool.Name(), errs.ErrNoSpace),
			"remove nodes (dmlayer rm) or layers that nothing uses (dmlayer prune)")
	}
	if free, ferr := fsutil.FreeSpace(o.s.pool.BlobDir()); ferr == nil && free < hostReserve {
		return errs.WithHint(fmt.Errorf("%w: the file system under the pool's files is full: %w", err, errs.ErrNoSpace),
			"free space on the file system of the root directory")
	}
	if errors.Is(err, unix.EIO) && errs.Class(err) == nil {
		return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrDamaged), pool.DiskHint)
	}
	return err
}

// mendErrors checks an ext4 that has run into errors before it is mounted for writing again. On a full pool it may have been unmounted with
// a journal that it could not write to its place and that no mount would replay: see fsutil.Fsck. It is asked in the open device, which is a
// read of what a mount reads anyway; one that is mounted elsewhere is left alone.
func mendErrors(ctx context.Context, d *device, n metadata.Node) error {
	_, err := mendOrFits(ctx, d, n)
	return err
}

// mendOrFits is mendErrors. fits says that the file system is known to be as large as the node, and to have no journal that could change that.
func mendOrFits(ctx context.Context, d *device, n metadata.Node) (fits bool, err error) {
	if fsutil.Type(n.FS) != fsutil.Ext4 || n.Foreign {
		return false, nil
	}
	fs, err := fsutil.ReadFS(d.File)
	if err != nil || !fs.HasErrors {
		return err == nil && !fs.NeedsRecovery && asLarge(fs, n), nil // what is no file system, the mount says
	}
	return false, mend(ctx, d, n)
}

// mend checks and repairs an ext4 that has run into errors.
func mend(ctx context.Context, d *device, n metadata.Node) error {
	_, err := fsutil.Fsck(ctx, d.path, fsutil.Ext4, fsutil.FsckOptions{Repair: true})
	if errors.Is(err, errs.ErrBusy) {
		return nil
	}
	if errors.Is(err, errs.ErrDamaged) {
		return errs.WithHint(fmt.Errorf("%s %q: its file system has run into errors: %w", n.Kind, n.Name, err), "dmlayer fsck "+n.Name+" says more; mount it with --read-only to save what can be read")
	}
	return err
}
