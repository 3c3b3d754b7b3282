package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
)

// labelParentChain comes with a layer that is prepared without its parent: the chain id of that.
const labelParentChain = "containerd.io/snapshot/parent-chain-id"

// sizeUnit is what file systems and the sectors of any disk go into.
const sizeUnit = 4096

var pointKnown = fault.New("snapshotter.prepare.known")

// standing is what a new snapshot stands on.
type standing struct {
	parent record
	node   string // of the parent; "" is none
	floor  int64  // size of the parent
	known  string // the layer that it is to become, where the pool has it
	there  bool   // a committed snapshot stands for that already, on the same parent
}

// stand looks at what a new snapshot stands on, all at one moment.
func (s *Snapshotter) stand(ctx context.Context, r record) (standing, error) {
	var on standing
	err := s.store.ViewDocuments(ctx, func(tx *layer.DocTx) (err error) {
		on, err = stands(tx, r)
		return err
	})
	if err == nil && on.parent.key != "" {
		s.seen.put(on.parent)
	}
	return on, err
}

func stands(tx documents, r record) (standing, error) {
	var on standing
	if err := free(tx, r.key); err != nil {
		return on, err
	}
	p, err := parentOf(tx, r)
	if err != nil {
		return on, err
	}
	on.node, on.parent = p.node, p
	if on.node != "" && r.Labels[snapshots.LabelSnapshotMaxSize] != "" {
		n, err := tx.Node(on.node)
		if err != nil {
			return on, err
		}
		on.floor = n.Size
	}
	if r.kind() == snapshots.KindActive {
		on.known, on.there, err = known(tx, r)
	}
	return on, err
}

// parentOf returns the snapshot's parent, which must be committed; an empty record where it has none.
func parentOf(tx documents, r record) (record, error) {
	if r.Parent == "" {
		return record{}, nil
	}
	p, err := get(tx, r.Parent)
	if err != nil {
		return p, fmt.Errorf("parent: %w", err)
	}
	if p.kind() != snapshots.KindCommitted {
		return p, fmt.Errorf("parent %q is not committed: %w", r.Parent, errdefs.ErrInvalidArgument)
	}
	return p, nil
}

// known returns the node of the layer that a snapshot says it is going to be, where the pool has it, and whether a committed snapshot on the same
// parent stands for it.
func known(tx documents, r record) (node string, there bool, err error) {
	ref := r.Labels[snapshots.LabelSnapshotRef]
	if ref == "" {
		return "", false, nil
	}
	found, err := withRef(tx, ref)
	if err != nil {
		return "", false, err
	}
	found = slices.DeleteFunc(found, func(f record) bool { return f.kind() != snapshots.KindCommitted })
	for _, f := range found {
		if f.Parent == r.Parent {
			return f.node, true, nil
		}
	}
	if len(found) > 0 {
		return found[0].node, false, nil
	}
	chain, err := digest.Parse(ref)
	if err != nil || chain.Algorithm() != digest.SHA256 {
		return "", false, nil // not a chain id: a reference of another kind
	}
	n, err := tx.Node("sha256-" + chain.Encoded())
	if errors.Is(err, layer.ErrNotFound) {
		return "", false, nil
	}
	if err != nil || n.Kind != layer.KindLayer || n.Attrs[layer.AttrChainID] != ref || n.Lost != nil {
		return "", false, err // one that a repair has cut is unpacked again
	}
	return n.Name, false, nil
}

// errForgotten says that a layer which the pool had was removed meanwhile.
var errForgotten = fmt.Errorf("the layer was removed meanwhile: %w", errdefs.ErrNotFound)

// prepareKnown answers a client that is about to unpack a layer that the pool has.
func (s *Snapshotter) prepareKnown(ctx context.Context, r record, on standing) ([]mount.Mount, error) {
	if err := pointKnown.Hit(); err != nil {
		return nil, err
	}
	if r.Parent == "" && r.Labels[labelParentChain] != "" {
		return s.stage(ctx, r, on.known)
	}
	ref := r.Labels[snapshots.LabelSnapshotRef]
	if !on.there {
		err := s.store.UpdateDocuments(ctx, func(tx *layer.DocTx) error { return adopt(tx, r) })
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("snapshot %q: layer %s is there: %w", r.key, ref, errdefs.ErrAlreadyExists)
}

// adopt commits a key for a layer that is there. Unless the reference itself is taken, it is the key.
func adopt(tx documents, r record) error {
	ref := r.Labels[snapshots.LabelSnapshotRef]
	to := newRecord(snapshots.KindCommitted, ref, r.Parent, r.Labels)
	node, there, err := known(tx, r)
	if err != nil || there {
		return err // somebody else was faster
	}
	if node == "" {
		return errForgotten
	}
	to.node = node
	if free(tx, ref) != nil || checkKey("reference", ref) != nil {
		to.key = r.key
	}
	return add(tx, to)
}

// stage makes an active snapshot that stands for a layer that is there.
func (s *Snapshotter) stage(ctx context.Context, r record, node string) ([]mount.Mount, error) {
	r.Staged, r.node = true, node
	d, err := s.store.ActivateWith(ctx, node, layer.ClaimOptions{Claim: claimOf(r.key), ReadOnly: true}, func(tx *layer.DocTx) error {
		now, _, err := known(tx, r)
		if err == nil && now != node {
			err = errForgotten
		}
		if err != nil {
			return err
		}
		return add(tx, r)
	})
	if errors.Is(err, layer.ErrNotFound) {
		if _, gerr := s.store.Get(ctx, node); errors.Is(gerr, layer.ErrNotFound) {
			err = errForgotten
		}
	}
	if err != nil {
		return nil, err
	}
	return mounts(d), nil
}

// commitStaged commits a key for the layer that a staged snapshot stands for.
func (s *Snapshotter) commitStaged(ctx context.Context, from, to record) error {
	_, err := s.store.Drop(ctx, from.node, claimOf(from.key), func(tx *layer.DocTx) error {
		if _, err := parentOf(tx, to); err != nil {
			return err
		}
		return replace(tx, from, to)
	})
	return err
}

// size returns how large a snapshot is to be, 0 for what it stands on: what the label says, but no less than that.
func (on standing) size(labels map[string]string) (int64, error) {
	text, ok := labels[snapshots.LabelSnapshotMaxSize]
	if !ok {
		return 0, nil
	}
	size, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || size <= 0 {
		return 0, fmt.Errorf("label %s=%q is no number of bytes: %w", snapshots.LabelSnapshotMaxSize, text, errdefs.ErrInvalidArgument)
	}
	if size <= on.floor {
		return 0, nil
	}
	if over := size % sizeUnit; over > 0 && size <= math.MaxInt64-sizeUnit {
		size += sizeUnit - over
	}
	return size, nil // one that cannot be is refused when it is made
}
