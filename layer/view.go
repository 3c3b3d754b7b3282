package layer

import (
	"context"
	"errors"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// View mounts nodes read-only for this process alone while fn runs. A layer is activated read-only and
// shared with whoever views it; a node that is mounted for writing is seen as it is now. What strangers
// wrote is ErrDamaged, as is a node that has lost blocks; see Trust.
func (s *Store) View(ctx context.Context, names []string, fn func(ctx context.Context, roots []string) error) error {
	return s.view(ctx, names, trusted, fn)
}

// ViewLeft is View, which also shows what is left of nodes that have lost blocks in a repair.
func (s *Store) ViewLeft(ctx context.Context, names []string, fn func(ctx context.Context, roots []string) error) error {
	return s.view(ctx, names, ours, fn)
}

func (s *Store) view(ctx context.Context, names []string, may func(metadata.Node, string) error, fn func(ctx context.Context, roots []string) error) (err error) {
	var views []*view
	defer func() {
		for _, v := range views {
			err = errors.Join(err, s.endView(ctx, v))
		}
	}()
	roots := make([]string, len(names))
	for i, name := range names {
		v, err := s.beginView(ctx, name, may)
		if err != nil {
			return opError("view", name, err)
		}
		views = append(views, v)
		roots[i] = v.mount.Path()
	}
	return fn(ctx, roots)
}

type view struct {
	node  metadata.Node
	mount *fsutil.Detached
}

func (s *Store) beginView(ctx context.Context, name string, may func(metadata.Node, string) error) (*view, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	defer o.Exit()
	n, err := o.lockNode(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := may(n, "diff"); err != nil {
		return nil, err
	}
	o.warnLost(n)
	m, err := o.mountView(ctx, n)
	if err != nil {
		return nil, undoing(ctx, o.explainFull(err), func(context.Context) error { return o.release(n) })
	}
	o.KeepMark(n.ID) // for whoever comes after a viewer that was killed
	return &view{n, m}, nil
}

// mountView mounts a node whose lock is held. A writable node may have a journal to replay, which a
// read-only device cannot: its file system is mounted for writing, and the mount is read-only.
func (o *op) mountView(ctx context.Context, n metadata.Node) (*fsutil.Detached, error) {
	readOnly := n.Kind == metadata.KindLayer
	if !readOnly {
		info, err := o.dm().Info(o.ref(n.ID))
		if notFoundIsNil(err) != nil {
			return nil, err
		}
		readOnly = err == nil && info.ReadOnly || err != nil && o.mayWrite() != nil // somebody has it so, or nobody can write
	}
	d, err := o.openDevice(ctx, n, readOnly)
	if err != nil {
		return nil, err
	}
	mount := fsutil.MountOptions{Type: fsutil.Type(n.FS), ReadOnly: readOnly, MountReadOnly: true}
	if readOnly && n.Kind != metadata.KindLayer {
		mount.Extra = o.withoutReplay(d, n)
	}
	m, err := fsutil.DetachedMount(ctx, d.path, mount)
	return m, errors.Join(err, d.Close())
}

func (s *Store) endView(ctx context.Context, v *view) error {
	ctx, cancel := pool.UndoContext(ctx)
	defer cancel()
	if err := v.mount.Close(); err != nil {
		return opError("view", v.node.Name, err)
	}
	o, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	// By its id: meanwhile the node may have got another name, or become a layer and left its device.
	if err := o.LockIDs(ctx, v.node.ID); err != nil {
		return err
	}
	if err := o.resumeDead(v.node.ID); err != nil {
		return err
	}
	if err := o.Mark(v.node.ID); err != nil {
		return err
	}
	return o.release(v.node)
}
