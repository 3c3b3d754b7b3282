package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointIDTaken        = fault.New("layer.create.id-taken")
	pointThinCreated    = fault.New("layer.create.thin-created")
	pointSnapshotRecord = fault.New("layer.snapshot.before-record")
	pointSnapshotDone   = fault.New("layer.snapshot.recorded")
)

// maxNodeSize is what the kernel's sector count and ext4 with 4 KiB blocks carry without special
// options.
const maxNodeSize = 16 << 40

// CreateSnapshot makes a writable node: a snapshot of a layer, of another snapshot or volume, or of an
// empty file system. A parent that is in use is frozen for the moment of the snapshot. Errors:
// ErrInvalid, ErrExists, ErrNotFound (parent), ErrNoSpace, ErrDamaged.
func (s *Store) CreateSnapshot(ctx context.Context, name string, so SnapshotOptions) (Node, error) {
	if so.Kind == "" {
		so.Kind = KindSnapshot
	}
	if so.Kind != KindSnapshot && so.Kind != KindVolume {
		return Node{}, fmt.Errorf("create %q: kind %q: %w", name, so.Kind, errs.ErrInvalid)
	}
	if err := checkNew(string(so.Kind), name, so.Size, so.Attrs); err != nil {
		return Node{}, err
	}
	n, err := s.createSnapshot(ctx, name, so)
	return n, opError("create "+string(so.Kind), name, err)
}

// checkNew checks what somebody wants to call a new node with these attributes, and its size, 0 for the default.
func checkNew(kind, name string, size int64, attrs map[string]string) error {
	if err := pool.ValidateNodeName(kind, name, attrs); err != nil {
		return err
	}
	if size != 0 {
		return checkSize(kind, name, size)
	}
	return nil
}

func checkSize(kind, name string, size int64) error {
	if size <= 0 || size%devmapper.SectorSize != 0 || size > maxNodeSize {
		err := fmt.Errorf("size %d of %s %q: %w", size, kind, name, errs.ErrInvalid)
		return errs.WithHint(err, "a size is a multiple of 512 bytes up to 16 TiB")
	}
	return nil
}

func (s *Store) createSnapshot(ctx context.Context, name string, so SnapshotOptions) (n Node, err error) {
	for {
		n, err = s.trySnapshot(ctx, name, so)
		if !errors.Is(err, errStale) {
			return n, err
		}
	}
}

// errStale says that what this process remembered of a parent is no longer so. It has been forgotten,
// and the operation begins again.
var errStale = fmt.Errorf("the parent was removed or replaced meanwhile: %w", errs.ErrNotFound)

func (s *Store) trySnapshot(ctx context.Context, name string, so SnapshotOptions) (Node, error) {
	o, parent, err := s.beginChild(ctx, name, so.Parent, so.Size)
	if err != nil {
		return Node{}, err
	}
	defer o.Exit()
	n := metadata.Node{
		Name: name, Kind: metadata.Kind(so.Kind), Parent: parent.Key, Size: max(so.Size, parent.Size), FS: parent.FS,
		Created: time.Now().UTC(), Labels: so.Labels, Attrs: so.Attrs, Foreign: parent.Foreign, Grown: parent.Grown || so.Size > parent.Size,
	}
	if err := o.CheckSectors(n.Size); err != nil {
		return Node{}, err
	}
	if err := o.admitWritable(ctx, n.Size); err != nil {
		return Node{}, err
	}
	if n.ID, err = o.snapshotOf(ctx, parent); err != nil {
		return Node{}, err
	}
	if err = pointSnapshotRecord.Hit(); err == nil {
		n, err = o.record(ctx, n, parent)
	}
	if err != nil {
		return Node{}, undoing(ctx, err, o.undo(n.ID))
	}
	return public(n, so.Parent), pointSnapshotDone.Hit()
}

// beginChild begins an operation that makes a child of a named parent, or of a template where none is
// named. A parent that can be written to is locked.
func (s *Store) beginChild(ctx context.Context, name, parent string, size int64) (*op, metadata.Node, error) {
	if parent == "" {
		return s.beginTemplate(ctx, name, size)
	}
	o, err := s.beginCreate(ctx)
	if err != nil {
		return nil, metadata.Node{}, err
	}
	p, err := o.parent(ctx, name, parent, size)
	if err == nil {
		err = whole(p)
	}
	if err != nil {
		o.Exit()
		return nil, metadata.Node{}, err
	}
	return o, p, nil
}

func (o *op) parent(ctx context.Context, name, parent string, size int64) (metadata.Node, error) {
	p, err := o.currentParent(ctx, name, parent, lookup)
	// A layer never changes, so its children need no lock: the record's transaction looks again.
	if err == nil && p.Kind != metadata.KindLayer {
		p, err = o.lockNode(ctx, parent)
	}
	if err != nil {
		return p, err
	}
	return p, checkFits(p, size)
}

// currentParent returns the parent of a node to be made. Where that takes a transaction, it also spares
// a thin device that would not be recorded because the name is taken; the record's own transaction
// checks in any case.
func (o *op) currentParent(ctx context.Context, name, parent string, find func(*metadata.Tx, string) (metadata.Node, error)) (metadata.Node, error) {
	version, err := o.Records.Version()
	if err != nil {
		return metadata.Node{}, err
	}
	if p, ok := o.s.hints.at(parent, version); ok {
		return p, nil
	}
	var p metadata.Node
	err = o.view(ctx, func(tx *metadata.Tx) (err error) {
		if err := nameFree(tx, name); err != nil {
			return err
		}
		p, err = find(tx, parent)
		return err
	})
	if err == nil {
		o.remember(p)
	}
	return p, err
}

func nameFree(tx *metadata.Tx, name string) error {
	if n, err := tx.Node(name); err == nil {
		return fmt.Errorf("%s %q: %w", n.Kind, name, errs.ErrExists)
	} else if !errors.Is(err, errs.ErrNotFound) {
		return err
	}
	return nil
}

func checkFits(parent metadata.Node, size int64) error {
	if size == 0 || size >= parent.Size {
		return nil
	}
	err := fmt.Errorf("size %d is below that of parent %q, %d: %w", size, parent.Name, parent.Size, errs.ErrInvalid)
	return errs.WithHint(err, "a child may be larger than its parent, never smaller")
}

// snapshotOf makes a thin snapshot of a node under a new id, whose lock it takes. A node that can be
// written to is locked by the caller, and frozen here for the moment if it is active.
func (o *op) snapshotOf(ctx context.Context, origin metadata.Node) (metadata.ThinID, error) {
	if origin.Kind == metadata.KindLayer || origin.Kind == metadata.KindTemplate {
		return o.newThin(ctx, func(id metadata.ThinID) error {
			err := o.Thin.CreateSnap(thinpool.ID(id), thinpool.ID(origin.ID))
			if errors.Is(err, thinpool.ErrNoDevice) {
				// Nobody locks a layer to make a child of it: it may be gone.
				err = errors.Join(o.view(ctx, func(tx *metadata.Tx) error { return o.s.sameParent(tx, origin) }), err)
			}
			return err
		})
	}
	return o.newThin(ctx, func(id metadata.ThinID) error { return o.snapshotFrozen(ctx, id, origin) })
}

// newThin takes an id and its lock and makes the thin device. EEXIST means that something lies there
// that we did not make: the next id, never "done".
func (o *op) newThin(ctx context.Context, create func(metadata.ThinID) error) (metadata.ThinID, error) {
	for {
		id, err := o.AllocateID(ctx)
		if err != nil {
			return 0, err
		}
		if err := pointIDTaken.Hit(); err != nil {
			return 0, err
		}
		err = create(id)
		if errors.Is(err, thinpool.ErrExists) {
			o.UnlockID(id)
			continue
		}
		if err == nil {
			err = pointThinCreated.Hit()
		}
		if errors.Is(err, thinpool.ErrNoDevice) && !errors.Is(err, errStale) {
			err = errs.WithHint(fmt.Errorf("the origin's thin device is not in the pool: %w: %w", err, errs.ErrDamaged), "dmlayer pool inspect tells what state the pool is in")
		}
		if err != nil {
			return 0, undoing(ctx, err, o.undo(id))
		}
		return id, nil
	}
}

// record is the commit point of a new node. Everything that was true when the work began is checked
// again; parent is the record that the node was made from.
func (o *op) record(ctx context.Context, n metadata.Node, parent metadata.Node) (metadata.Node, error) {
	return o.recordWith(ctx, n, parent, nil)
}

// sameParent is errStale where the parent that an operation began with is not the parent any more.
func (s *Store) sameParent(tx *metadata.Tx, parent metadata.Node) error {
	now, err := tx.Node(parent.Name)
	if errors.Is(err, errs.ErrNotFound) || err == nil && (now.Key != parent.Key || now.ID != parent.ID) {
		s.hints.drop(parent.Name)
		return errStale
	}
	return err
}

// undo returns what takes a new thin device back that was not recorded. Where it fails, the next open
// finds the id in the window.
func (o *op) undo(id metadata.ThinID) func(context.Context) error {
	return func(ctx context.Context) error {
		// A transaction that failed at its very end may be in the store all the same: what it names stays.
		named := false
		err := o.view(ctx, func(tx *metadata.Tx) error { named = tx.Named(id); return nil })
		if err != nil || named {
			return err
		}
		if err := o.remove(id); err != nil {
			return fmt.Errorf("undo: thin device %d: %w", id, err)
		}
		budget := int64(reapDiscards) // of what was half made and large, the rest is left to whoever comes next, as if we had died
		if _, err := o.deleteWith(ctx, id, pool.DiscardOptions{Budget: &budget}); err != nil {
			return fmt.Errorf("undo: thin device %d: %w", id, err)
		}
		return nil
	}
}
