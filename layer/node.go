package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// public returns what callers see of a record. A template is nobody's parent to them.
func public(n metadata.Node, parent string) Node {
	return Node{
		Name: n.Name, Kind: Kind(n.Kind), Parent: parent, Size: n.Size, FS: n.FS,
		Created: n.Created, Labels: n.Labels, Attrs: n.Attrs, Foreign: n.Foreign, Lost: n.Lost,
	}
}

// parentName returns the name of a node's parent as callers see it.
func parentName(tx *metadata.Tx, n metadata.Node) (string, error) {
	if n.Parent == 0 {
		return "", nil
	}
	p, err := tx.NodeByKey(n.Parent)
	if err != nil {
		return "", err
	}
	if p.Kind == metadata.KindTemplate {
		return "", nil
	}
	return p.Name, nil
}

// lookup returns the node of that name; templates have none that callers can say.
func lookup(tx *metadata.Tx, name string) (metadata.Node, error) {
	n, err := tx.Node(name)
	if err == nil && n.Kind == metadata.KindTemplate {
		err = fmt.Errorf("node %q: %w", name, errs.ErrNotFound)
	}
	if errors.Is(err, errs.ErrNotFound) {
		err = errs.WithHint(err, "dmlayer ls shows what there is")
	}
	return n, err
}

// Get returns a node's record.
func (s *Store) Get(ctx context.Context, name string) (Node, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return Node{}, err
	}
	defer o.Exit()
	var n Node
	err = o.view(ctx, func(tx *metadata.Tx) error {
		n, err = getPublic(tx, name)
		return err
	})
	return n, err
}

func getPublic(tx *metadata.Tx, name string) (Node, error) {
	n, err := lookup(tx, name)
	if err != nil {
		return Node{}, err
	}
	parent, err := parentName(tx, n)
	return public(n, parent), err
}

// lockNode finds a node, takes its lock and looks it up again, because it may have been renamed,
// reset, resized or removed in between. Whoever gets the lock first resumes the node if it is
// suspended: its owner is dead.
func (o *op) lockNode(ctx context.Context, name string) (metadata.Node, error) {
	n, err := o.guess(ctx, name)
	if err != nil {
		return n, err
	}
	for {
		if err := o.LockIDs(ctx, n.ID); err != nil {
			return n, err
		}
		again, err := o.current(ctx, name)
		if err == nil && again.ID == n.ID {
			return again, o.resumeDead(again.ID)
		}
		o.UnlockID(n.ID)
		o.s.hints.drop(name)
		if err != nil {
			return again, err
		}
		n = again
	}
}

// withNode runs fn on a node whose lock is held.
func (s *Store) withNode(ctx context.Context, begin func(context.Context) (*op, error), name string, fn func(o *op, n metadata.Node) error) error {
	return s.withLocked(ctx, begin, (*op).lockNode, name, fn)
}

// withNodeUnlessEdited is withNode for those who have activated the node: it waits for no Edit of this process.
func (s *Store) withNodeUnlessEdited(ctx context.Context, begin func(context.Context) (*op, error), name string, fn func(o *op, n metadata.Node) error) error {
	return s.withLocked(ctx, begin, (*op).lockUnlessEdited, name, fn)
}

func (s *Store) withLocked(
	ctx context.Context, begin func(context.Context) (*op, error), lock func(*op, context.Context, string) (metadata.Node, error),
	name string, fn func(o *op, n metadata.Node) error,
) error {
	o, err := begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	n, err := lock(o, ctx, name)
	if err != nil {
		return err
	}
	return fn(o, n)
}

// lockPair is lockNode for a node and the one it is made from; both locks are taken in ascending
// order of their ids. other is called inside the transaction.
func (o *op) lockPair(ctx context.Context, name string, other func(tx *metadata.Tx, n metadata.Node) (metadata.Node, error)) (n, m metadata.Node, err error) {
	both := func() error {
		return o.view(ctx, func(tx *metadata.Tx) (err error) {
			if n, err = lookup(tx, name); err != nil {
				return err
			}
			m, err = other(tx, n)
			return err
		})
	}
	for {
		if err := both(); err != nil {
			return n, m, err
		}
		nid, mid := n.ID, m.ID
		if err := o.LockIDs(ctx, nid, mid); err != nil {
			return n, m, err
		}
		err := both()
		if err == nil && n.ID == nid && m.ID == mid {
			return n, m, errors.Join(o.resumeDead(nid), o.resumeDead(mid))
		}
		o.UnlockID(nid)
		o.UnlockID(mid)
		if err != nil {
			return n, m, err
		}
	}
}

// guess returns the node as it was last seen, which spares a transaction: what it says is checked
// under the lock.
func (o *op) guess(ctx context.Context, name string) (n metadata.Node, err error) {
	if n, ok := o.s.hints.get(name); ok {
		return n, nil
	}
	return o.read(ctx, name)
}

// read looks a node up in a transaction.
func (o *op) read(ctx context.Context, name string) (n metadata.Node, err error) {
	err = o.view(ctx, func(tx *metadata.Tx) (err error) {
		n, err = lookup(tx, name)
		return err
	})
	if err == nil {
		o.remember(n)
	}
	return n, err
}

// current is read without a transaction where the store has not changed since the node was last seen.
func (o *op) current(ctx context.Context, name string) (metadata.Node, error) {
	version, err := o.Records.Version()
	if err != nil {
		return metadata.Node{}, err
	}
	if n, ok := o.s.hints.at(name, version); ok {
		return n, nil
	}
	return o.read(ctx, name)
}

func (o *op) remember(n metadata.Node) { o.s.hints.put(n, o.version) }
