package layer

import (
	"context"
	"errors"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

var (
	pointDropYielded  = fault.New("layer.drop.yielded")
	pointDropRecorded = fault.New("layer.drop.recorded")
)

// Drop ends somebody's use of a node: it changes documents and, where nothing else needs the node by then, removes it, in one transaction. It waits for
// nobody: a node whose device somebody still has open is removed, and its thin device deleted after its last user. Where somebody serves the pool,
// this one or another process, deleting the thin device is left to him. claim, unless it is "", is of
// Activate. Whether the node was removed is told; where documents, other nodes or other claims need it, it stays.
func (s *Store) Drop(ctx context.Context, name, claim string, documents func(*DocTx) error) (removed bool, err error) {
	if claim != "" {
		err = checkClaim(claim)
	}
	if err == nil {
		err = s.withNode(ctx, s.beginDelete, name, func(o *op, n metadata.Node) (err error) {
			removed, err = o.drop(ctx, n, claim, documents)
			return err
		})
	}
	return removed, opError("drop", name, err)
}

func (o *op) drop(ctx context.Context, n metadata.Node, claim string, documents func(*DocTx) error) (removed bool, err error) {
	if claim != "" {
		err = o.dropClaim(n, claim)
	}
	if err == nil {
		err = pointDropYielded.Hit()
	}
	defer func() {
		if err != nil {
			o.KeepMark(n.ID) // whoever comes next takes away what nobody uses
		}
	}()
	if err != nil {
		return false, err
	}
	held, err := o.claims(n.ID)
	if err != nil {
		return false, err
	}
	needed := len(held) > 0
	if n.Kind == metadata.KindLayer && !needed { // of a layer anybody may be a reader
		if needed, err = o.isOpen(n); err != nil {
			return false, err
		}
	}
	err = o.update(ctx, func(tx *metadata.Tx) error {
		if err := stillSame(tx, n); err != nil {
			return err
		}
		if err := documents(&DocTx{tx}); err != nil {
			return err
		}
		removed = false
		switch err := unused(tx, n); {
		case needed || errors.Is(err, errs.ErrBusy):
			return nil
		case err != nil:
			return err
		}
		removed = true
		return bury(tx, n)
	})
	if err != nil {
		return false, err
	}
	if err := pointDropRecorded.Hit(); err != nil {
		return removed, err
	}
	if removed {
		return true, o.bringDown(ctx, n)
	}
	if len(held) > 0 {
		return false, nil
	}
	return false, o.letGo(n)
}

// bringDown takes away what the kernel has of a node that is not recorded any more. What somebody has open goes with its last user.
func (o *op) bringDown(ctx context.Context, n metadata.Node) error {
	o.s.hints.drop(n.Name)
	_ = unix.Rmdir(filepath.Join(o.s.pool.MountDir(), n.Name)) // of a mount that died
	err := o.remove(n.ID)
	if errors.Is(err, devmapper.ErrBusy) {
		// The tombstone remembers the thin device.
		_, err := o.dm().Remove(o.ref(n.ID), devmapper.RemoveOptions{Deferred: true})
		return notFoundIsNil(err)
	}
	if err != nil {
		return err
	}
	if served, err := o.Served(); err != nil || served {
		return err // whoever serves the pool does the rest, of many removals at once
	}
	budget := int64(reapDiscards) // what is more is left to Reap
	_, err = o.deleteWith(ctx, n.ID, pool.DiscardOptions{Budget: &budget})
	return err
}
