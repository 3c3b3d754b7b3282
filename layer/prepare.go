package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointPrepareActive   = fault.New("layer.prepare.activated")
	pointPrepareRecorded = fault.New("layer.prepare.recorded")
)

// Prepare is CreateSnapshot and Activate in one operation. documents, which may be nil, changes documents in the transaction that
// records the node, may be called more than once, and in another goroutine; an error of it is returned and leaves nothing behind. When Prepare was interrupted after that transaction, the node is
// there, whole and not claimed.
func (s *Store) Prepare(ctx context.Context, name string, so SnapshotOptions, co ClaimOptions, documents func(*DocTx) error) (Node, Device, error) {
	if so.Kind == "" {
		so.Kind = KindSnapshot
	}
	err := checkNew(string(so.Kind), name, so.Size, so.Attrs)
	if err == nil {
		err = checkClaim(co.Claim)
	}
	if err == nil && so.Kind == KindLayer {
		err = fmt.Errorf("kind %q: %w", so.Kind, errs.ErrInvalid)
	}
	p := &preparation{s: s, name: name, so: so, co: co, documents: documents}
	for again := true; again && err == nil; {
		err = p.run(ctx)
		if again = errors.Is(err, errStale); again {
			err = nil
		}
	}
	return p.node, p.device, opError("prepare", name, err)
}

// preparation is one call of Prepare.
type preparation struct {
	s         *Store
	name      string
	so        SnapshotOptions
	co        ClaimOptions
	documents func(*DocTx) error

	node   Node
	device Device
}

func (p *preparation) run(ctx context.Context) error {
	o, parent, err := p.s.beginChild(ctx, p.name, p.so.Parent, p.so.Size)
	if err != nil {
		return err
	}
	defer o.Exit()
	n := metadata.Node{
		Name: p.name, Kind: metadata.Kind(p.so.Kind), Parent: parent.Key, Size: max(p.so.Size, parent.Size), FS: parent.FS,
		Created: time.Now().UTC(), Labels: p.so.Labels, Attrs: p.so.Attrs, Foreign: parent.Foreign, Grown: parent.Grown || p.so.Size > parent.Size,
	}
	if err := trusted(n, "mount"); err != nil {
		return err
	}
	if err := o.CheckSectors(n.Size); err != nil {
		return err
	}
	if err := o.admitWritable(ctx, canWrite(n)); err != nil {
		return err
	}
	if n.ID, err = o.snapshotOf(ctx, parent); err != nil {
		return err
	}
	o.seen = seen{id: n.ID, absent: true} // nobody else knows the id
	path, err := p.activate(ctx, o, n)
	if err == nil {
		n, err = o.recordWith(ctx, n, parent, p.documents)
	}
	if err != nil {
		return undoing(ctx, err, o.undo(n.ID))
	}
	if err = pointPrepareRecorded.Hit(); err == nil {
		err = o.promise(n, p.co.Claim, path)
	}
	if err == nil {
		err = pointHandedOut.Hit()
	}
	if err != nil {
		o.KeepMark(n.ID) // unless somebody activates it, whoever comes next takes the device away
		return err
	}
	p.node, p.device = public(n, p.so.Parent), o.described(n, p.co.ReadOnly)
	return nil
}

// activate makes the device of the node, which has no record yet, and a file system as large as that.
func (p *preparation) activate(ctx context.Context, o *op, n metadata.Node) (path string, err error) {
	d, err := o.openDevice(ctx, n, p.co.ReadOnly)
	if err != nil {
		return "", err
	}
	if !p.co.ReadOnly {
		err = o.explainFull(fitFS(ctx, d, n))
	}
	if err = errors.Join(err, d.Close()); err == nil {
		err = pointPrepareActive.Hit()
	}
	return d.path, err
}

// recordWith is record together with a change of documents.
func (o *op) recordWith(ctx context.Context, n, parent metadata.Node, documents func(*DocTx) error) (metadata.Node, error) {
	recorded := n
	err := o.updateTogether(ctx, func(tx *metadata.Tx) (err error) {
		if err := nameFree(tx, n.Name); err != nil {
			return err
		}
		if err := o.s.sameParent(tx, parent); err != nil {
			return err
		}
		if err := o.admitRecord(tx, canWrite(n)); err != nil {
			return err
		}
		if recorded, err = tx.AddNode(n); err != nil || documents == nil {
			return err
		}
		return documents(&DocTx{tx})
	})
	if err != nil {
		return n, err
	}
	o.remember(recorded)
	return recorded, nil
}
