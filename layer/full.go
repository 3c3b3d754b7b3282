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

// roomCommands make room in a pool.
const roomCommands = "dmlayer pool extend, dmlayer rm"

// unmended says that the file system of a node has run into errors, and could not be repaired before it is used again.
type unmended struct {
	kind metadata.Kind
	node string
	err  error
}

func (u *unmended) Error() string {
	return fmt.Sprintf("%s %q: its file system has run into errors: %v", u.kind, u.node, u.err)
}

func (u *unmended) Unwrap() error { return u.err }

func isUnmended(err error) bool {
	var u *unmended
	return errors.As(err, &u)
}

// explainFull gives an error its class where it came from a pool or a host file system that has no room,
// from a pool that cannot commit any more, or from a disk: the file system on top only saw an I/O error.
func (o *op) explainFull(err error) error {
	if err == nil || !(errors.Is(err, unix.EIO) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EROFS) || isUnmended(err)) {
		return err
	}
	st, serr := o.Thin.Status()
	switch {
	case serr != nil:
	case !st.Commits():
		o.Status = st
		return fmt.Errorf("%w: %w", err, o.Writable())
	case st.Mode == thinpool.ModeOutOfDataSpace:
		return o.outOfData(err)
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

// outOfData is explainFull for a pool without room for data.
func (o *op) outOfData(err error) error {
	hint := pool.RoomHint
	if n := (*unmended)(nil); errors.As(err, &n) {
		hint = "make room (" + roomCommands + "), then dmlayer fsck --repair " + n.node
	}
	return errs.WithHint(fmt.Errorf("%w: pool %q is out of data space: %w", err, o.s.pool.Name(), errs.ErrNoSpace), hint)
}

// explainStopped is explainFull for what was asked of a mounted node: where its file system has stopped, nothing that is done to it while
// it is mounted helps any more, and on a full pool its journal could not be replayed.
func (o *op) explainStopped(n metadata.Node, err error) error {
	if !errors.Is(err, fsutil.ErrStopped) {
		return o.explainFull(err)
	}
	steps := fmt.Sprintf("dmlayer unmount %s, dmlayer fsck --repair %s, and mount it again; what was durable is there then", n.Name, n.Name)
	if o.isFull() {
		return errs.WithHint(fmt.Errorf("%w: pool %q is out of data space: %w", err, o.s.pool.Name(), errs.ErrNoSpace),
			"make room ("+roomCommands+"), then "+steps)
	}
	return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrDamaged), steps)
}

// isFull tells whether the pool has no block left for data.
func (o *op) isFull() bool {
	st, err := o.Thin.Status()
	return err == nil && st.Mode == thinpool.ModeOutOfDataSpace
}

// CheckMountOptions is ErrInvalid for mount options that the pool's nodes are not mounted with.
func (s *Store) CheckMountOptions(options ...string) error {
	return fsutil.CheckOptions(fsutil.Type(s.pool.Record().FS), options...)
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
		return errs.WithHint(&unmended{n.Kind, n.Name, err}, "dmlayer fsck "+n.Name+" says more; mount it with --read-only to save what can be read")
	}
	return err
}
