package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

var (
	pointCommitReplayed = fault.New("layer.commit.replayed")
	pointCommitRecord   = fault.New("layer.commit.recorded")
	pointMoveFlushed    = fault.New("layer.commit.flushed-in-place")
	pointMoveRecord     = fault.New("layer.commit.moved")
)

// Commit makes an immutable layer of what a snapshot or volume holds now, also while it is in use. The
// snapshot lives on, unless it is told to become the layer itself. Errors: ErrNotFound, ErrExists,
// ErrInvalid (a layer), ErrNoSpace, ErrDamaged; ErrBusy of one that is to become the layer and is attached, or is to be unused and is not.
func (s *Store) Commit(ctx context.Context, snapshot, layer string, co CommitOptions) (Node, error) {
	if err := pool.ValidateNodeName(string(KindLayer), layer, co.Attrs); err != nil {
		return Node{}, err
	}
	n, err := s.commit(ctx, snapshot, layer, co)
	return n, opError("commit", snapshot, err)
}

func (s *Store) commit(ctx context.Context, snapshot, name string, co CommitOptions) (Node, error) {
	o, err := s.beginCreate(ctx)
	if err != nil {
		return Node{}, err
	}
	defer o.Exit()
	lock := (*op).lockNode
	if co.Claim != "" {
		lock = (*op).lockUnlessEdited
	}
	src, err := lock(o, ctx, snapshot)
	if err != nil {
		return Node{}, err
	}
	if src.Kind == metadata.KindLayer {
		return Node{}, fmt.Errorf("%q is a layer already: %w", snapshot, errs.ErrInvalid)
	}
	if err := o.view(ctx, func(tx *metadata.Tx) error { return nameFree(tx, name) }); err != nil {
		return Node{}, err
	}
	if co.Move && co.Claim == "" { // in use comes before not trusted
		if err := o.unclaimed(src); err != nil {
			return Node{}, err
		}
	}
	if err := whole(src); err != nil {
		return Node{}, err
	}
	if !co.Trust {
		if err := trusted(src, "commit"); err != nil {
			return Node{}, err
		}
	}
	switch {
	case !co.Move:
		return o.commitCopy(ctx, src, name, co)
	case co.Claim != "":
		return o.commitClaimed(ctx, src, name, co)
	}
	return o.commitMove(ctx, src, name, co)
}

// commitMove turns a node that nobody claims into the layer, or where somebody has it open a copy of it, which takes its place.
func (o *op) commitMove(ctx context.Context, src metadata.Node, name string, co CommitOptions) (Node, error) {
	if err := o.unclaimed(src); err != nil {
		return Node{}, err
	}
	for {
		done, n, err := o.commitInPlace(ctx, src, name, co)
		if done || err != nil {
			return n, err
		}
		if !co.Unused {
			return o.commitCopy(ctx, src, name, co)
		}
		if err := errors.Join(o.quiesce(src), ctx.Err()); err != nil { // else who had it open was quicker
			return Node{}, err
		}
	}
}

// unclaimed is ErrBusy for a node that somebody claims: what he was promised would go with its name.
func (o *op) unclaimed(n metadata.Node) error {
	held, err := o.claims(n.ID)
	if err == nil && len(held) > 0 {
		err = claimedBy(n, held)
	}
	return err
}

// commitCopy makes the layer from a thin snapshot of the node, whose lock is held.
func (o *op) commitCopy(ctx context.Context, src metadata.Node, name string, co CommitOptions) (Node, error) {
	n := metadata.Node{
		Name: name, Kind: metadata.KindLayer, Parent: src.Parent, Size: src.Size, FS: src.FS,
		Created: time.Now().UTC(), Labels: co.Labels, Attrs: co.Attrs, Grown: src.Grown,
	}
	var err error
	if n.ID, err = o.snapshotOf(ctx, src); err != nil {
		return Node{}, err
	}
	parent := ""
	if err = o.replay(ctx, n, src); err == nil {
		err = o.update(ctx, func(tx *metadata.Tx) (err error) {
			if err := stillSame(tx, src); err != nil {
				return err
			}
			if err := o.admitRecord(tx, 0); err != nil {
				return err
			}
			if co.Move {
				if n, err = become(tx, src, n); err != nil {
					return err
				}
			} else if n, err = tx.AddNode(n); err != nil {
				return err
			}
			if parent, err = parentName(tx, n); err != nil {
				return err
			}
			return co.document(tx)
		})
	}
	if err != nil {
		return Node{}, undoing(ctx, err, o.undo(n.ID))
	}
	o.remember(n)
	if co.Move {
		o.s.hints.drop(src.Name)
		if err := o.clean(ctx, src.ID, &cleaning{budget: reapDiscards}); err != nil { // goes now if nobody has it open, else with its last user
			return Node{}, err
		}
	}
	return public(n, parent), pointCommitRecord.Hit()
}

// stillSame checks that the record is as it was under the lock; only a bug or a restored store makes
// it differ.
func stillSame(tx *metadata.Tx, n metadata.Node) error {
	now, err := tx.NodeByKey(n.Key)
	if err == nil && now.ID != n.ID {
		err = fmt.Errorf("%s %q changed under its lock: %w", n.Kind, n.Name, errs.ErrDamaged)
	}
	return err
}

// become gives a node's place among the records, with its children, to the copy of it, and the old
// thin device a tombstone.
func become(tx *metadata.Tx, src, n metadata.Node) (metadata.Node, error) {
	n.Key = src.Key
	n.Created = src.Created
	if n.Labels == nil {
		n.Labels = src.Labels
	}
	if n.Attrs == nil {
		n.Attrs = src.Attrs
	}
	if err := tx.PutNode(n); err != nil || n.ID == src.ID {
		return n, err
	}
	return n, tx.PutTombstone(metadata.Tombstone{ID: src.ID, Name: src.Name, Since: time.Now().UTC()})
}

// replay brings a copy's journal to its end, because a layer is only ever mounted read-only: a
// journal of the snapshot's freeze (xfs), or of a crash. What strangers wrote is checked before.
func (o *op) replay(ctx context.Context, n, src metadata.Node) error {
	d, err := o.openDevice(ctx, n, false)
	if err != nil {
		return err
	}
	if err = o.explainFull(settleFS(ctx, d, n, src)); err == nil {
		err = fsutil.Flush(d.File)
	}
	if err = errors.Join(err, d.Close(), o.putAway(n.ID)); err != nil {
		return err
	}
	return pointCommitReplayed.Hit()
}

// settleFS leaves a file system that can be mounted read-only, of a node that is src or a copy of it.
func settleFS(ctx context.Context, d *device, n, src metadata.Node) error {
	if src.Foreign {
		if err := vet(ctx, d, src); err != nil {
			return err
		}
	}
	return replayOn(ctx, d, n)
}

func replayOn(ctx context.Context, d *device, n metadata.Node) error {
	if err := mendErrors(ctx, d, n); err != nil {
		return err
	}
	needed, err := fsutil.NeedsRecovery(d.path, fsutil.Type(n.FS))
	if err != nil || !needed {
		return err
	}
	return withMount(ctx, d, n, false, func(*fsutil.Detached) error { return nil })
}

// commitInPlace turns the node itself into the layer. Where somebody uses it, done is false and
// nothing has changed.
func (o *op) commitInPlace(ctx context.Context, src metadata.Node, name string, co CommitOptions) (done bool, _ Node, err error) {
	// A device that nobody has open need not be made anew.
	open, err := o.isOpen(src)
	if open || err != nil {
		return false, Node{}, err
	}
	busy, err := o.settleInPlace(ctx, src)
	if busy || err != nil {
		return false, Node{}, err
	}
	n := src
	n.Name, n.Kind, n.Labels, n.Attrs, n.Foreign = name, metadata.KindLayer, co.Labels, co.Attrs, false
	parent := ""
	err = o.updateTogether(ctx, func(tx *metadata.Tx) (err error) {
		if err := stillSame(tx, src); err != nil {
			return err
		}
		if n, err = become(tx, src, n); err != nil {
			return err
		}
		if parent, err = parentName(tx, n); err != nil {
			return err
		}
		return co.document(tx)
	})
	if err != nil {
		return false, Node{}, err
	}
	o.s.hints.drop(src.Name)
	o.remember(n)
	return true, public(n, parent), pointMoveRecord.Hit()
}

// settleInPlace makes durable whatever the node's last user wrote: a VM may have closed its disk
// without a flush. The device is opened exclusively and is down again when this returns; busy means
// that somebody has opened it meanwhile.
func (o *op) settleInPlace(ctx context.Context, n metadata.Node) (busy bool, err error) {
	d, err := o.openDevice(ctx, n, false)
	if err != nil {
		return false, err
	}
	err = o.flushExclusive(ctx, d, n)
	err = errors.Join(err, d.Close())
	if err == nil {
		err = pointMoveFlushed.Hit()
	}
	if rerr := o.remove(n.ID); rerr != nil {
		err = errors.Join(err, rerr)
	}
	if errors.Is(err, errs.ErrBusy) || errors.Is(err, devmapper.ErrBusy) {
		return true, nil
	}
	return false, err
}

func (o *op) flushExclusive(ctx context.Context, d *device, n metadata.Node) error {
	f, err := fsutil.OpenExclusive(d.path, true)
	if err != nil {
		return err
	}
	if err := errors.Join(fsutil.Flush(f), f.Close()); err != nil {
		return err
	}
	if err := settleFS(ctx, d, n, n); err != nil {
		return err
	}
	return fsutil.Flush(d.File)
}
