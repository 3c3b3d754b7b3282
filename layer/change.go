package layer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

var (
	pointResetMade    = fault.New("layer.reset.made")
	pointResetRecord  = fault.New("layer.reset.recorded")
	pointResizeRecord = fault.New("layer.resize.recorded")
	pointResizeTable  = fault.New("layer.resize.table")
	pointResizeGrown  = fault.New("layer.resize.grown")
	pointRenameRecord = fault.New("layer.rename.recorded")
	pointLabelRecord  = fault.New("layer.label.recorded")
)

// Reset brings a snapshot or volume back to the content of its parent, or of a layer, in time that does
// not depend on what was written: what that has taken is given back as after a Drop. A node in use is ErrBusy.
func (s *Store) Reset(ctx context.Context, name, to string) error {
	return opError("reset", name, s.reset(ctx, name, to))
}

func (s *Store) reset(ctx context.Context, name, to string) error {
	for {
		aside, err := s.tryReset(ctx, name, to)
		if !errors.Is(err, errAside) {
			return err
		}
		if err := s.makeTemplate(ctx, templateName(s.pool.Record(), aside.Size), aside.Size); err != nil {
			return fmt.Errorf("make template: %w", err)
		}
	}
}

// errAside says that the template of a node was set aside, and that there is no other one yet.
var errAside = fmt.Errorf("the template was damaged: %w", errs.ErrNotFound)

// tryReset is reset. Beside errAside it returns the template that was set aside.
func (s *Store) tryReset(ctx context.Context, name, to string) (origin metadata.Node, err error) {
	o, err := s.beginCreate(ctx)
	if err != nil {
		return origin, err
	}
	defer o.Exit()
	n, origin, err := o.lockPair(ctx, name, func(tx *metadata.Tx, n metadata.Node) (_ metadata.Node, err error) {
		origin, err = s.resetOrigin(tx, n, to)
		return origin, err
	})
	if err == nil {
		err = whole(origin)
	}
	if err != nil {
		return origin, err
	}
	return origin, o.resetTo(ctx, n, origin)
}

// resetTo gives a node what another one holds. Both are locked.
func (o *op) resetTo(ctx context.Context, n, origin metadata.Node) (err error) {
	if err := o.quiesce(n); err != nil {
		return err
	}
	fresh := n
	fresh.Parent, fresh.Foreign, fresh.FS, fresh.Size = origin.Key, origin.Foreign, origin.FS, max(n.Size, origin.Size)
	fresh.Grown, fresh.Lost = origin.Grown || n.Size > origin.Size, nil
	if fresh.ID, err = o.snapshotOf(ctx, origin); err != nil {
		return err
	}
	if err = pointResetMade.Hit(); err == nil {
		err = o.update(ctx, func(tx *metadata.Tx) error {
			if err := errors.Join(stillSame(tx, n), stillSame(tx, origin), o.admitRecord(tx, fresh.Size-n.Size)); err != nil {
				return err
			}
			if err := tx.PutNode(fresh); err != nil {
				return err
			}
			return tx.PutTombstone(metadata.Tombstone{ID: n.ID, Name: n.Name, Since: time.Now().UTC()})
		})
	}
	if err != nil {
		return undoing(ctx, err, o.undo(fresh.ID))
	}
	o.remember(fresh)
	if err := pointResetRecord.Hit(); err != nil {
		return err
	}
	return o.deleteFirst(ctx, n.ID)
}

// resetOrigin returns what a node is reset to. Beside errAside it returns the template that it was made from.
func (s *Store) resetOrigin(tx *metadata.Tx, n metadata.Node, to string) (metadata.Node, error) {
	if n.Kind == metadata.KindLayer {
		return n, fmt.Errorf("%q is a layer, which never changes: %w", n.Name, errs.ErrInvalid)
	}
	if to == "" {
		parent, err := tx.NodeByKey(n.Parent)
		if err != nil || !pool.SetAside(parent) {
			return parent, err
		}
		again, err := tx.Node(templateName(s.pool.Record(), parent.Size))
		if errors.Is(err, errs.ErrNotFound) {
			return parent, errAside
		}
		return again, err
	}
	l, err := lookup(tx, to)
	if err == nil && l.Kind != metadata.KindLayer {
		err = fmt.Errorf("%q is a %s, not a layer: %w", to, l.Kind, errs.ErrInvalid)
	}
	// A layer that was committed from a child of the node descends from it.
	for up := l; err == nil && up.Parent != 0; {
		if up, err = tx.NodeByKey(up.Parent); err == nil && up.Key == n.Key {
			err = fmt.Errorf("layer %q descends from %q: %w", to, n.Name, errs.ErrInvalid)
		}
	}
	return l, err
}

// Resize makes a snapshot or volume larger, device and file system, mounted or not. Its present size
// is no error; a smaller one is ErrInvalid.
func (s *Store) Resize(ctx context.Context, name string, size int64) error {
	if err := checkSize("node", name, size); err != nil {
		return err
	}
	return opError("resize", name, s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) error { return o.resize(ctx, n, size) }))
}

// ResizeBy grows a node by that many bytes, as Resize does.
func (s *Store) ResizeBy(ctx context.Context, name string, more int64) error {
	if err := checkSize("node", name, more); err != nil {
		return err
	}
	return opError("resize", name, s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) error {
		if err := checkSize("node", name, n.Size+more); err != nil {
			return err
		}
		return o.resize(ctx, n, n.Size+more)
	}))
}

func (o *op) resize(ctx context.Context, n metadata.Node, size int64) error {
	if n.Kind == metadata.KindLayer {
		return fmt.Errorf("%q is a layer, which never changes: %w", n.Name, errs.ErrInvalid)
	}
	if size < n.Size {
		err := fmt.Errorf("%d is less than the present size, %d: %w", size, n.Size, errs.ErrInvalid)
		return errs.WithHint(err, "a node never shrinks; copy what is needed to a new one")
	}
	// The record comes first: mounting then finishes whatever a crash cuts short.
	if size > n.Size {
		if err := o.Writable(); err != nil {
			return err // the file system could not grow
		}
		if err := o.CheckSectors(size); err != nil {
			return err
		}
		if err := o.admit(ctx); err != nil {
			return err
		}
		more := size - n.Size
		n.Size, n.Grown = size, true
		err := o.editIf(ctx, n.Key, func(tx *metadata.Tx) error { return o.admitRecord(tx, more) }, func(n *metadata.Node) { n.Size, n.Grown = size, true })
		if err != nil {
			return err
		}
	}
	if err := pointResizeRecord.Hit(); err != nil {
		return err
	}
	return o.explainFull(o.grow(ctx, n))
}

// grow brings device and file system to the recorded size.
func (o *op) grow(ctx context.Context, n metadata.Node) error {
	info, err := o.dm().Info(o.ref(n.ID))
	if err := notFoundIsNil(err); err != nil {
		return err
	}
	active := err == nil && info.Active
	if active && !info.ReadOnly {
		if err := o.loadSize(n); err != nil {
			return err
		}
	}
	if err := pointResizeTable.Hit(); err != nil {
		return err
	}
	if active && info.ReadOnly {
		return nil // the next writable activation does it
	}
	if n.Foreign || active && info.OpenCount > 0 {
		return o.growMounted(ctx, n, info)
	}
	d, err := o.openDevice(ctx, n, false)
	if err != nil {
		return err
	}
	err = withMount(ctx, d, n, false, func(*fsutil.Detached) error { return pointResizeGrown.Hit() })
	return errors.Join(err, d.Close(), o.release(n))
}

// growMounted grows the file system where it is mounted; on a raw device it is its user's to grow.
func (o *op) growMounted(ctx context.Context, n metadata.Node, info devmapper.Info) error {
	if n.Foreign {
		return nil
	}
	mounts, err := fsutil.MountsOf(info.Dev.Major, info.Dev.Minor)
	if err != nil || len(mounts) == 0 {
		return err
	}
	if mounts[0].ReadOnly() {
		return nil // the next writable mount does it
	}
	if err := fsutil.Grow(ctx, mounts[0].Dir); err != nil {
		return err
	}
	return pointResizeGrown.Hit()
}

// Rename gives a node another name. An attached one is ErrBusy: its path was promised for its life. A layer that came with an image is
// ErrInvalid: it is found by its name.
func (s *Store) Rename(ctx context.Context, old, new string) error {
	if err := pool.ValidateName("node", new); err != nil {
		return err
	}
	return opError("rename", old, s.withNode(ctx, s.beginWrite, old, func(o *op, n metadata.Node) error { return o.rename(ctx, n, new) }))
}

func (o *op) rename(ctx context.Context, n metadata.Node, new string) error {
	if err := pool.ValidateNodeName("node", new, n.Attrs); err != nil {
		return err
	}
	if n.Kind == metadata.KindLayer && pool.NamedByImage(n.Name, n.Attrs) && new != n.Name {
		err := fmt.Errorf("it is a layer from an image, which is found by that name: %w", errs.ErrInvalid)
		return errs.WithHint(err, "dmlayer image tag gives the image another reference")
	}
	if err := o.unclaimed(n); err != nil { // under its name
		return err
	}
	if err := o.edit(ctx, n.Key, func(n *metadata.Node) { n.Name = new }); err != nil {
		return err
	}
	o.s.hints.drop(n.Name)
	return pointRenameRecord.Hit()
}

// Label sets and removes labels of a node.
func (s *Store) Label(ctx context.Context, name string, set map[string]string, remove []string) error {
	return opError("label", name, s.withNode(ctx, s.beginWrite, name, func(o *op, n metadata.Node) error { return o.label(ctx, n, set, remove) }))
}

func (o *op) label(ctx context.Context, n metadata.Node, set map[string]string, remove []string) error {
	err := o.edit(ctx, n.Key, func(n *metadata.Node) {
		labels := maps.Clone(n.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		maps.Copy(labels, set)
		for _, k := range remove {
			delete(labels, k)
		}
		n.Labels = labels
	})
	if err != nil {
		return err
	}
	return pointLabelRecord.Hit()
}

// edit changes a record of which nothing in the kernel depends. The node's lock is held.
func (o *op) edit(ctx context.Context, key metadata.Key, change func(*metadata.Node)) error {
	return o.editIf(ctx, key, func(*metadata.Tx) error { return nil }, change)
}

// editIf is edit with a condition, which is looked at in the same transaction.
func (o *op) editIf(ctx context.Context, key metadata.Key, condition func(*metadata.Tx) error, change func(*metadata.Node)) error {
	var n metadata.Node
	err := o.update(ctx, func(tx *metadata.Tx) (err error) {
		if err := condition(tx); err != nil {
			return err
		}
		if n, err = tx.NodeByKey(key); err != nil {
			return err
		}
		change(&n)
		return tx.PutNode(n)
	})
	if err == nil {
		o.remember(n)
	}
	return err
}

// Fsck checks the file system of a node that is not in use, and repairs it if told to. A layer is
// only ever checked.
func (s *Store) Fsck(ctx context.Context, name string, repair bool) (FsckResult, error) {
	var r FsckResult
	err := s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) (err error) {
		r, err = o.fsck(ctx, n, repair)
		return err
	})
	return r, opError("check", name, err)
}

func (o *op) fsck(ctx context.Context, n metadata.Node, repair bool) (FsckResult, error) {
	if repair && n.Kind == metadata.KindLayer {
		return FsckResult{}, fmt.Errorf("%q is a layer, which never changes: %w", n.Name, errs.ErrInvalid)
	}
	if err := o.quiesce(n); err != nil {
		return FsckResult{}, err
	}
	readOnly := n.Kind == metadata.KindLayer
	d, err := o.openDevice(ctx, n, readOnly)
	if err != nil {
		return FsckResult{}, err
	}
	if !readOnly {
		err = o.explainFull(o.replayForCheck(ctx, d, n))
	}
	var r fsutil.FsckResult
	if err == nil || isUnmended(err) && !o.isFull() { // the check says what is wrong
		r, err = fsutil.Fsck(ctx, d.path, fsutil.Type(n.FS), fsutil.FsckOptions{Repair: repair})
	}
	err = errors.Join(err, d.Close(), o.remove(n.ID))
	return FsckResult{Clean: r.Clean, Fixed: r.Fixed, Output: r.Output}, err
}

// replayForCheck replays a journal, because one that was not replayed is no damage.
func (o *op) replayForCheck(ctx context.Context, d *device, n metadata.Node) error {
	if n.Foreign {
		return replayForeign(ctx, d, n)
	}
	return replayOn(ctx, d, n)
}

// Trim gives the blocks that a mounted node's file system does not use back to the pool, and returns
// the bytes that the file system passed down. What was deleted is made durable first. ErrNotFound where the node is not mounted; where its
// file system has stopped after an error, ErrNoSpace on a full pool, else ErrDamaged.
func (s *Store) Trim(ctx context.Context, name string) (uint64, error) {
	var trimmed uint64
	err := s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) (err error) {
		trimmed, err = o.trim(ctx, n)
		return err
	})
	return trimmed, opError("trim", name, err)
}

// trimMounted trims the file system of a node that is mounted at dir. What was deleted is not free in it before its journal says so.
func (o *op) trimMounted(ctx context.Context, n metadata.Node, dir string) (uint64, error) {
	trimmed, err := fsutil.Trim(ctx, dir)
	if err == nil || trimmed > 0 {
		_, cerr := o.Thin.Commit() // what was discarded is free only then
		err = errors.Join(err, cerr)
	}
	return trimmed, o.explainStopped(n, err)
}

func (o *op) trim(ctx context.Context, n metadata.Node) (uint64, error) {
	mounts, err := o.mountsOf(n.ID)
	if err != nil {
		return 0, err
	}
	for _, m := range mounts {
		if fsutil.StoppedByErrors(m) {
			return 0, o.explainStopped(n, fsutil.ErrStopped)
		}
		if !m.ReadOnly() {
			return o.trimMounted(ctx, n, m.Dir)
		}
	}
	if len(mounts) > 0 {
		return 0, fmt.Errorf("%s %q is mounted read-only: %w", n.Kind, n.Name, errs.ErrInvalid)
	}
	return 0, errs.WithHint(fmt.Errorf("%s %q is not mounted: %w", n.Kind, n.Name, errs.ErrNotFound), "dmlayer mount "+n.Name)
}
