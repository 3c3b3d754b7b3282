package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointSuspended        = fault.New("layer.freeze.suspended")
	pointSuspendedSnapped = fault.New("layer.freeze.snapped")
	pointResumed          = fault.New("layer.freeze.resumed")
)

// freezeTimeout bounds the wait for I/O in flight when a device is suspended. What is dirty was
// written back before, so that the pause itself is short.
const freezeTimeout = 30 * time.Second

// snapshotFrozen makes a thin snapshot of a node that may be in use. The node's lock and the new id's
// are held; the id was taken before, because no transaction may run while the device is suspended: the
// store may lie on it.
func (o *op) snapshotFrozen(ctx context.Context, id metadata.ThinID, origin metadata.Node) error {
	info, err := o.dm().Info(o.ref(origin.ID))
	switch {
	case errors.Is(err, devmapper.ErrNotFound):
		return o.Thin.CreateSnap(thinpool.ID(id), thinpool.ID(origin.ID))
	case err != nil:
		return err
	case info.ReadOnly || !info.Active:
		return o.Thin.CreateSnap(thinpool.ID(id), thinpool.ID(origin.ID))
	}
	if err := writeBack(info.Dev); err != nil {
		return err
	}
	return o.snapshotSuspended(ctx, id, origin)
}

// snapshotSuspended is snapshotFrozen for a device that is active and synced.
func (o *op) snapshotSuspended(ctx context.Context, id metadata.ThinID, origin metadata.Node) error {
	if err := o.suspend(ctx, origin.ID); err != nil {
		o.KeepMark(origin.ID) // the kernel may suspend it yet
		return fmt.Errorf("freeze %q: %w", origin.Name, err)
	}
	err := pointSuspended.Hit()
	if err == nil {
		o.after, err = o.Thin.CreateSnapStatus(thinpool.ID(id), thinpool.ID(origin.ID))
	}
	if err == nil {
		err = pointSuspendedSnapped.Hit()
	}
	_, rerr := o.dm().Resume(o.ref(origin.ID), devmapper.ResumeOptions{})
	if rerr != nil {
		o.KeepMark(origin.ID)
		return errors.Join(err, fmt.Errorf("thaw %q: %w", origin.Name, rerr))
	}
	if err != nil {
		return err
	}
	return pointResumed.Hit()
}

// writeBack writes what is dirty in the file system on a device, so that the freeze has little to do.
func writeBack(d devmapper.DevNum) error {
	mounts, err := fsutil.MountsOf(d.Major, d.Minor)
	if err != nil || len(mounts) == 0 {
		return err
	}
	return fsutil.SyncFS(mounts[0].Dir)
}

// suspend marks a node's device as being suspended, so that whoever comes after a crash finds it, and
// suspends it.
func (o *op) suspend(ctx context.Context, id metadata.ThinID) error {
	if err := o.Mark(id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, freezeTimeout)
	defer cancel()
	return o.dm().Suspend(ctx, o.ref(id), devmapper.SuspendOptions{})
}
