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

var pointLossTaken = fault.New("layer.trust.loss-taken")

// Trust checks the file system of a node that strangers may have written, and takes the mark away. What is not
// sound stays foreign, and is ErrDamaged; a node in use is ErrBusy. One that is not foreign is not looked at.
//
// Nothing of the file system reaches the kernel before: an ext4 journal is replayed by e2fsck, of a node that can be written to.
// The log of an xfs only a kernel can replay, so where there is something in it that is ErrDamaged too.
//
// That a node has lost blocks in a repair stays marked.
func (s *Store) Trust(ctx context.Context, name string) error {
	return opError("trust", name, s.withNode(ctx, s.begin, name, func(o *op, n metadata.Node) error { return o.trust(ctx, &n, true, true) }))
}

// trust refuses a node that is foreign or has lost blocks, or checks it and takes the marks away where somebody trusts it. Who
// only reads takes nothing as it is: what was lost stays so.
func (o *op) trust(ctx context.Context, n *metadata.Node, trust, readOnly bool) error {
	if !trust {
		return trusted(*n, "mount")
	}
	if readOnly {
		o.warnLost(*n)
	}
	if !n.Foreign && (n.Lost == nil || readOnly) {
		return nil
	}
	if err := o.quiesce(*n); err != nil {
		return err
	}
	d, err := o.openDevice(ctx, *n, n.Kind == metadata.KindLayer)
	if err != nil {
		return err
	}
	err = errors.Join(vet(ctx, d, *n), d.Close())
	if err == nil {
		err = o.takeAsIs(ctx, n, readOnly)
	}
	if err != nil {
		return undoing(ctx, err, func(context.Context) error { return o.release(*n) })
	}
	return o.release(*n) // a mount that follows may want it otherwise
}

// takeAsIs takes the marks of a node away whose file system was found sound.
func (o *op) takeAsIs(ctx context.Context, n *metadata.Node, readOnly bool) error {
	if readOnly || n.Lost == nil {
		return o.setForeign(ctx, n, false)
	}
	n.Foreign, n.Lost = false, nil
	if err := o.edit(ctx, n.Key, func(n *metadata.Node) { n.Foreign, n.Lost = false, nil }); err != nil {
		return err
	}
	return pointLossTaken.Hit()
}

// vet checks a foreign file system in user space. Its device is open, writable unless the node is a layer, and nothing has
// it mounted.
func vet(ctx context.Context, d *device, n metadata.Node) error {
	if n.Kind != metadata.KindLayer {
		if err := replayForeign(ctx, d, n); err != nil {
			return unsound(n, err)
		}
	}
	r, err := fsutil.Fsck(ctx, d.path, fsutil.Type(n.FS), fsutil.FsckOptions{})
	if err == nil && r.DirtyLog {
		err = fmt.Errorf("its log has not been replayed: %w", errs.ErrDamaged)
	}
	if err == nil {
		return nil
	}
	if r.DirtyLog {
		err = errs.WithHint(err, "only a kernel can replay it: let the one who wrote it mount and unmount it once more (dmlayer attach "+n.Name+")")
	}
	return unsound(n, err)
}

// replayForeign replays an ext4 journal without the kernel. What says that it is something else is left to the check.
func replayForeign(ctx context.Context, d *device, n metadata.Node) error {
	if fsutil.Type(n.FS) != fsutil.Ext4 {
		return nil
	}
	needed, err := fsutil.NeedsRecovery(d.path, fsutil.Ext4)
	if errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrDamaged) {
		return nil
	}
	if err != nil || !needed {
		return err
	}
	return fsutil.ReplayJournal(ctx, d.path)
}

// unsound says what a check of a foreign file system found, and gives a way out.
func unsound(n metadata.Node, err error) error {
	why := "was written by strangers"
	if !n.Foreign {
		why = fmt.Sprintf("has lost %s", n.Lost)
	}
	if !errors.Is(err, errs.ErrDamaged) {
		return fmt.Errorf("%s %q %s and could not be checked: %w", n.Kind, n.Name, why, err)
	}
	err = fmt.Errorf("%s %q %s and is not sound: %w", n.Kind, n.Name, why, err)
	if errs.Hint(err) == "" && n.Kind != metadata.KindLayer {
		err = errs.WithHint(err, "dmlayer fsck --repair "+n.Name+", or dmlayer reset "+n.Name)
	}
	return err
}

// setForeign records whether strangers may have written the node's file system.
func (o *op) setForeign(ctx context.Context, n *metadata.Node, foreign bool) error {
	n.Foreign = foreign
	if err := o.edit(ctx, n.Key, func(n *metadata.Node) { n.Foreign = foreign }); err != nil {
		return err
	}
	return pointAttachForeign.Hit()
}

// trusted is ErrDamaged for a node that has lost blocks, or whose file system strangers wrote: the kernel's file system code is
// no place for hostile bytes. verb is the command that has a --trust.
func trusted(n metadata.Node, verb string) error {
	if err := whole(n); err != nil {
		return err
	}
	return ours(n, verb)
}

// ours is trusted for whoever takes what is left of a node.
func ours(n metadata.Node, verb string) error {
	if !n.Foreign {
		return nil
	}
	err := fmt.Errorf("%s %q was written by strangers and is not trusted: %w", n.Kind, n.Name, errs.ErrDamaged)
	return errs.WithHint(err, "dmlayer "+verb+" --trust "+n.Name+" checks it, and trusts it if it is sound")
}
