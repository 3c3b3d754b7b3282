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
)

var (
	pointDropYielded  = fault.New("layer.drop.yielded")
	pointDropRecorded = fault.New("layer.drop.recorded")
)

// Drop ends somebody's use of a node: it changes documents, as Prepare does, and, where nothing else needs the node by then, removes it, in one transaction. It waits for
// nobody: a node whose device somebody still has open is removed, and its thin device deleted after its last user. Where somebody serves the pool,
// this one or another process, deleting the thin device is left to him. claim, unless it is "", is of
// Activate. Whether the node was removed is told. A layer stays where documents, other nodes or other claims of Activate need it, and goes with the
// last Drop. Any other node that is needed, what is attached, and what an Edit of this process writes to, is ErrBusy. Where Drop fails nothing has changed, and the claim is there still.
func (s *Store) Drop(ctx context.Context, name, claim string, documents func(*DocTx) error) (removed bool, err error) {
	if claim != "" {
		err = checkClaim(claim)
	}
	if err == nil {
		err = s.withNodeUnlessEdited(ctx, s.beginDelete, name, func(o *op, n metadata.Node) (err error) {
			removed, err = o.drop(ctx, n, claim, documents)
			return err
		})
	}
	return removed, opError("drop", name, err)
}

func (o *op) drop(ctx context.Context, n metadata.Node, claim string, documents func(*DocTx) error) (removed bool, err error) {
	d := dropping{node: n, claim: claim, documents: documents}
	if err = o.dropRecord(ctx, &d); err == nil {
		err = pointDropRecorded.Hit()
	}
	if err == nil {
		switch {
		case d.removed:
			err = o.bringDown(ctx, n)
		case len(d.others) == 0:
			err = o.letGo(n)
		}
	}
	if err != nil {
		o.KeepMark(n.ID) // whoever comes next takes away what nobody uses
	}
	return d.removed, err
}

// dropping is one call of Drop.
type dropping struct {
	node      metadata.Node
	claim     string
	documents func(*DocTx) error

	others  []string // claims
	decided bool     // all was checked: what failed after that may be in the store all the same
	removed bool
}

// dropRecord ends the claim and then, as a claim that nobody ends any more would be worse than one that is missing, changes the records. Whoever is
// refused has his claim again.
func (o *op) dropRecord(ctx context.Context, d *dropping) (err error) {
	mine := false
	if d.claim != "" {
		mine, err = o.dropClaim(d.node, d.claim)
	}
	if err == nil {
		err = pointDropYielded.Hit()
	}
	if err == nil {
		d.others, err = o.claims(d.node.ID)
	}
	if err == nil {
		err = o.updateTogether(ctx, func(tx *metadata.Tx) error { return d.change(tx) })
	}
	if err == nil {
		return nil
	}
	d.removed = false
	if !mine || d.decided {
		return err
	}
	return undoing(ctx, err, func(context.Context) error { return o.claimAgain(d.node, d.claim) })
}

// change is the transaction of a Drop.
func (d *dropping) change(tx *metadata.Tx) error {
	d.decided, d.removed = false, false
	if err := stillSame(tx, d.node); err != nil {
		return err
	}
	if err := d.documents(&DocTx{tx}); err != nil {
		return err
	}
	layer := d.node.Kind == metadata.KindLayer
	err := unused(tx, d.node)
	switch {
	case err == nil && len(d.others) == 0:
		err, d.removed = bury(tx, d.node), true
	case err == nil && !(layer && !attached(d.others)):
		err = claimedBy(d.node, d.others) // nobody would come back for it when that claim ends
	case layer && errors.Is(err, errs.ErrBusy):
		err = nil
	}
	d.decided = err == nil
	return err
}

// claimAgain gives a claim back that was dropped in this operation, and the link to the device, which is there still.
func (o *op) claimAgain(n metadata.Node, claim string) error {
	info, err := o.dm().Info(o.ref(n.ID))
	if err != nil {
		return notFoundIsNil(err) // it was worth nothing
	}
	path, err := o.s.pool.DeviceNode(info.Dev)
	if err == nil {
		err = o.promise(n, claim, path)
	}
	return err
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
	return o.deleteFirst(ctx, n.ID)
}
