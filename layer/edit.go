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
	pointEditMounted = fault.New("layer.edit.mounted")
	pointEditFlushed = fault.New("layer.edit.flushed")
)

// Edit mounts a snapshot or volume for this process alone while fn writes to it, also while it is mounted elsewhere, and makes what was written
// durable. Nothing is taken back where fn fails. Operations on the node wait meanwhile, but for Activate, Drop, and Commit of a claim, in this process. Errors: ErrNotFound, ErrInvalid (a layer), ErrBusy (attached), ErrNoSpace, ErrDamaged.
func (s *Store) Edit(ctx context.Context, name string, fn func(ctx context.Context, root string) error) error {
	return s.edit(ctx, name, fn, func(o *op, n metadata.Node) error { return o.mayMount(n, false) })
}

// EditClaimed is Edit on behalf of whoever has activated the node, and mounts its file system himself.
func (s *Store) EditClaimed(ctx context.Context, name string, fn func(ctx context.Context, root string) error) error {
	return s.edit(ctx, name, fn, (*op).notAttached)
}

func (s *Store) edit(ctx context.Context, name string, fn func(context.Context, string) error, may func(*op, metadata.Node) error) error {
	return opError("edit", name, s.withNode(ctx, s.beginCreate, name, func(o *op, n metadata.Node) error {
		if n.Kind == metadata.KindLayer {
			return fmt.Errorf("%q is a layer, which never changes: %w", n.Name, errs.ErrInvalid)
		}
		if err := errors.Join(may(o, n), trusted(n, "mount")); err != nil {
			return err
		}
		defer s.edits.begin(ctx, name)()
		return o.editContent(ctx, n, fn)
	}))
}

// notAttached is ErrBusy where the block device itself was given out.
func (o *op) notAttached(n metadata.Node) error {
	held, err := o.claims(n.ID)
	if err == nil && (attached(held)) {
		err = claimedBy(n, held)
	}
	return err
}

func (o *op) editContent(ctx context.Context, n metadata.Node, fn func(ctx context.Context, root string) error) error {
	d, err := o.openDevice(ctx, n, false)
	if err != nil {
		return err
	}
	err = withMount(ctx, d, n, false, func(m *fsutil.Detached) error {
		if err := pointEditMounted.Hit(); err != nil {
			return err
		}
		if err := fn(ctx, m.Path()); err != nil {
			return err
		}
		return m.Sync()
	})
	if err == nil {
		err = fsutil.Flush(d.File)
	}
	err = errors.Join(o.explainFull(err), d.Close(), o.release(n))
	if err != nil {
		return err
	}
	return pointEditFlushed.Hit()
}
