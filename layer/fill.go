package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointLayerMounted = fault.New("layer.fill.mounted")
	pointLayerFilled  = fault.New("layer.fill.filled")
	pointLayerFlushed = fault.New("layer.fill.flushed")
	pointCopyFlushed  = fault.New("layer.fill.copy-flushed")
	pointCopySettled  = fault.New("layer.fill.copy-settled")
)

// CreateLayer makes an immutable layer. fill writes into the root directory of the new device, which
// is mounted for this process alone; when it returns nil, everything is synced, flushed and recorded.
// After an error or a kill nothing is left. Only one process fills a layer of that name at a time;
// where the layer exists once the lock is had, the error is ErrExists and fill was not called.
func (s *Store) CreateLayer(ctx context.Context, name string, lo LayerOptions, fill func(ctx context.Context, w *LayerWriter) error) (Node, error) {
	made, err := s.CreateLayers(ctx, []NewLayer{{Name: name, Options: lo, Fill: fill}})
	if len(made) == 0 {
		return Node{}, err
	}
	return made[0], err
}

// work is the making of layers on one working device. A layer that is not the last one on it is a copy
// of it; the last one is the device itself.
type work struct {
	*op
	chain  *chain
	node   metadata.Node // the layer that is being made, as a record of the working device
	parent metadata.Node // what it stands on
	filled bool          // Fill was called
}

func (c *chain) tryRun(ctx context.Context) (filled bool, err error) {
	l := c.todo[0]
	o, parent, err := c.s.beginChild(ctx, l.Name, l.Options.Parent, l.Options.Size)
	if err != nil {
		return false, err
	}
	defer o.Exit()
	err = o.view(ctx, func(tx *metadata.Tx) error { return errors.Join(nameFree(tx, l.Name), c.s.sameParent(tx, parent)) })
	if err != nil {
		return false, err
	}
	if parent.Kind != metadata.KindLayer && parent.Kind != metadata.KindTemplate {
		return false, fmt.Errorf("parent %q is a %s, not a layer: %w", parent.Name, parent.Kind, errs.ErrInvalid)
	}
	w := &work{op: o, chain: c, node: l.on(parent), parent: parent}
	if err := trusted(parent, "mount"); err != nil {
		return false, err
	}
	for _, l := range c.todo {
		if err := o.CheckSectors(l.Options.Size); err != nil {
			return false, err
		}
	}
	if w.node.ID, err = o.snapshotOf(ctx, parent); err != nil {
		return false, err
	}
	if err = o.explainFull(w.fillLayers(ctx)); err == nil {
		w.node, err = o.record(ctx, w.node, w.parent)
	}
	if err != nil {
		return w.filled, undoing(ctx, err, o.undo(w.node.ID))
	}
	return true, c.advance(w.node)
}

// fillLayers writes, syncs and flushes through one activation that stays open from the first write to
// the flush: writes of an activation whose pool failed in between are known to be lost only to it. When it
// returns nil, the last layer is whole, and yet to be recorded.
func (w *work) fillLayers(ctx context.Context) error {
	d, err := w.openDevice(ctx, w.node, false)
	if err != nil {
		return err
	}
	err = withMount(ctx, d, w.node, false, func(m *fsutil.Detached) error {
		if err := pointLayerMounted.Hit(); err != nil {
			return err
		}
		for {
			blobs, err := w.fillOne(ctx, m)
			if err != nil {
				return err
			}
			if !w.goesOn(d) {
				return w.settleBlobs(blobs, w.node.ID)
			}
			if err := w.recordCopy(ctx, d, blobs); err != nil {
				return err
			}
		}
	})
	if err == nil {
		err = fsutil.Flush(d.File)
	}
	if err == nil {
		err = pointLayerFlushed.Hit()
	}
	return errors.Join(err, d.Close(), w.putAway(w.node.ID))
}

// fillOne fills a layer and syncs it, and claims the next. It tells whether there are side files, which
// still go by the working device.
func (w *work) fillOne(ctx context.Context, m *fsutil.Detached) (blobs bool, err error) {
	lw := &LayerWriter{root: m.Path(), store: w.s, node: &w.node}
	defer lw.abandon()
	w.filled = true
	if err := w.chain.todo[0].Fill(ctx, lw); err != nil {
		return false, err
	}
	if err := ctx.Err(); err != nil {
		return false, err
	}
	if blobs, err = lw.finish(); err != nil {
		return blobs, err
	}
	if err := pointLayerFilled.Hit(); err != nil {
		return blobs, err
	}
	if err := w.chain.claimNext(ctx, w.op); err != nil {
		return blobs, err
	}
	return blobs, m.Sync()
}

// goesOn tells whether the next layer can be made on the same device: of the same size, and of a file system
// that leaves nothing to replay when it is frozen, because a layer is only ever mounted read-only. That is
// ext4 with a journal, which is marked while it is mounted for writing; xfs keeps its log dirty.
func (w *work) goesOn(d *device) bool {
	if len(w.chain.todo) == 1 {
		return false
	}
	if size := w.chain.todo[1].Options.Size; size != 0 && size != w.node.Size {
		return false
	}
	fs, err := fsutil.ReadFS(d.File)
	return err == nil && fs.Type == fsutil.Ext4 && fs.NeedsRecovery
}

// recordCopy makes the layer of a copy of the working device, which is mounted, and goes on to the next.
func (w *work) recordCopy(ctx context.Context, d *device, blobs bool) error {
	id, err := w.newThin(ctx, func(id metadata.ThinID) error { return w.snapshotSuspended(ctx, id, w.node) })
	if err != nil {
		return err
	}
	n := w.node
	n.ID = id
	if err = w.settleCopy(d, blobs, id); err == nil {
		n, err = w.record(ctx, n, w.parent)
	}
	if err != nil {
		return undoing(ctx, err, w.undo(id))
	}
	w.UnlockID(id)
	if err := w.chain.advance(n); err != nil {
		return err
	}
	if err := w.admitNext(ctx); err != nil {
		return err
	}
	next := w.chain.todo[0].on(n)
	next.ID = w.node.ID
	w.node, w.parent = next, n
	return nil
}

// settleCopy makes durable what the copy needs before it is recorded. The flush also tells of writes that
// failed while the file system was being frozen.
func (w *work) settleCopy(d *device, blobs bool, id metadata.ThinID) error {
	if err := fsutil.Flush(d.File); err != nil {
		return err
	}
	if err := pointCopyFlushed.Hit(); err != nil {
		return err
	}
	if err := w.settleBlobs(blobs, id); err != nil {
		return err
	}
	return pointCopySettled.Hit()
}

// withMount mounts an open device for this process alone while fn runs. A writable mount finishes a
// growth of the device first.
func withMount(ctx context.Context, d *device, n metadata.Node, readOnly bool, fn func(*fsutil.Detached) error) error {
	if !readOnly {
		if err := mendErrors(ctx, d, n); err != nil {
			return err
		}
	}
	m, err := fsutil.DetachedMount(ctx, d.path, fsutil.MountOptions{Type: fsutil.Type(n.FS), ReadOnly: readOnly})
	if err != nil {
		return err
	}
	if !readOnly {
		err = fsutil.Grow(ctx, m.Path())
		if err == nil {
			err = finishGrowth(ctx, m.Path(), n)
		}
	}
	if err == nil {
		err = fn(m)
	}
	return errors.Join(err, m.Close())
}
