package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointLayerMounted = fault.New("layer.fill.mounted")
	pointLayerFilled  = fault.New("layer.fill.filled")
	pointLayerFlushed = fault.New("layer.fill.flushed")
	pointLayerDone    = fault.New("layer.fill.recorded")
)

// CreateLayer makes an immutable layer. fill writes into the root directory of the new device, which
// is mounted for this process alone; when it returns nil, everything is synced, flushed and recorded.
// After an error or a kill nothing is left. Only one process fills a layer of that name at a time;
// where the layer exists once the lock is had, the error is ErrExists and fill was not called.
func (s *Store) CreateLayer(ctx context.Context, name string, lo LayerOptions, fill func(ctx context.Context, w *LayerWriter) error) (Node, error) {
	if err := checkNew(string(KindLayer), name, lo.Size); err != nil {
		return Node{}, err
	}
	unlock, err := s.pool.LockChain(ctx, name)
	if err != nil {
		return Node{}, err
	}
	defer unlock()
	n, err := s.createLayer(ctx, name, lo, fill)
	return n, opError("create layer", name, err)
}

func (s *Store) createLayer(ctx context.Context, name string, lo LayerOptions, fill func(ctx context.Context, w *LayerWriter) error) (n Node, err error) {
	filled := false
	once := func(ctx context.Context, w *LayerWriter) error {
		filled = true
		return fill(ctx, w)
	}
	for {
		n, err = s.tryLayer(ctx, name, lo, once)
		if filled || !errors.Is(err, errStale) {
			return n, err
		}
	}
}

func (s *Store) tryLayer(ctx context.Context, name string, lo LayerOptions, fill func(ctx context.Context, w *LayerWriter) error) (Node, error) {
	o, parent, err := s.beginChild(ctx, name, lo.Parent, lo.Size)
	if err != nil {
		return Node{}, err
	}
	defer o.Exit()
	err = o.view(ctx, func(tx *metadata.Tx) error { return errors.Join(nameFree(tx, name), s.sameParent(tx, parent)) })
	if err != nil {
		return Node{}, err
	}
	if parent.Kind != metadata.KindLayer && parent.Kind != metadata.KindTemplate {
		return Node{}, fmt.Errorf("parent %q is a %s, not a layer: %w", parent.Name, parent.Kind, errs.ErrInvalid)
	}
	n := metadata.Node{
		Name: name, Kind: metadata.KindLayer, Parent: parent.Key, Size: max(lo.Size, parent.Size), FS: parent.FS,
		Created: time.Now().UTC(), Labels: lo.Labels, Attrs: maps.Clone(lo.Attrs), Foreign: parent.Foreign,
	}
	if err := trusted(n); err != nil {
		return Node{}, err
	}
	if n.ID, err = o.snapshotOf(ctx, parent); err != nil {
		return Node{}, err
	}
	if err = o.explainFull(o.fillLayer(ctx, &n, fill)); err == nil {
		n, err = o.record(ctx, n, parent)
	}
	if err != nil {
		return Node{}, undoing(ctx, err, o.undo(n.ID))
	}
	return public(n, lo.Parent), pointLayerDone.Hit()
}

// fillLayer writes, syncs and flushes through one activation that stays open from the first write to
// the flush: writes of an activation whose pool failed in between are known to be lost only to it.
func (o *op) fillLayer(ctx context.Context, n *metadata.Node, fill func(ctx context.Context, w *LayerWriter) error) error {
	d, err := o.openDevice(ctx, *n, false)
	if err != nil {
		return err
	}
	err = withMount(ctx, d, *n, false, func(m *fsutil.Detached) error {
		if err := pointLayerMounted.Hit(); err != nil {
			return err
		}
		w := &LayerWriter{root: m.Path(), store: o.s, node: n}
		defer w.abandon()
		if err := fill(ctx, w); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := w.finish(); err != nil {
			return err
		}
		if err := pointLayerFilled.Hit(); err != nil {
			return err
		}
		return m.Sync()
	})
	if err == nil {
		err = fsutil.Flush(d.File)
	}
	if err == nil {
		err = pointLayerFlushed.Hit()
	}
	return errors.Join(err, d.Close(), o.putAway(n.ID))
}

// withMount mounts an open device for this process alone while fn runs. A writable mount finishes a
// growth of the device first.
func withMount(ctx context.Context, d *device, n metadata.Node, readOnly bool, fn func(*fsutil.Detached) error) error {
	m, err := fsutil.DetachedMount(ctx, d.path, fsutil.MountOptions{Type: fsutil.Type(n.FS), ReadOnly: readOnly})
	if err != nil {
		return err
	}
	if !readOnly {
		err = fsutil.Grow(ctx, m.Path())
	}
	if err == nil {
		err = fn(m)
	}
	return errors.Join(err, m.Close())
}
