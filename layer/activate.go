package layer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointHandedOut = fault.New("layer.activate.handed-out")
	pointUnclaim   = fault.New("layer.deactivate.dropped")
)

// Device is the block device of a node whose file system somebody else mounts.
type Device struct {
	Path     string // stays the same until the claim ends
	FS       string // "ext4" or "xfs"
	ReadOnly bool
	Options  []string // to mount it with, as in fstab(5); "ro" is among them where it is read-only
}

// ClaimOptions says for whom a node is activated, and how.
type ClaimOptions struct {
	Claim    string // the user's word: lower case letters, digits and '-', up to 64, no other program's
	ReadOnly bool   // a layer always is
	// Check, unless nil, looks at documents before Activate claims anything, while nobody can end a claim on the node. Its error is returned.
	Check func(*DocTx) error
}

var claimGrammar = regexp.MustCompile(`^[a-z][a-z0-9-]{0,63}$`)

// checkClaim refuses what is no file's name, and the claims that Attach makes.
func checkClaim(claim string) error {
	if !claimGrammar.MatchString(claim) || claim == claimAttached || claim == claimAttachedReadOnly {
		return fmt.Errorf("claim %q: %w", claim, errs.ErrInvalid)
	}
	return nil
}

// attached tells whether claims of Attach are among those on a node.
func attached(held []string) bool {
	return slices.Contains(held, claimAttached) || slices.Contains(held, claimAttachedReadOnly)
}

// claimedBy is ErrBusy for a node that somebody claims.
func claimedBy(n metadata.Node, held []string) error {
	if attached(held) {
		return errs.WithHint(fmt.Errorf("%s %q is attached: %w", n.Kind, n.Name, errs.ErrBusy), "dmlayer detach "+n.Name)
	}
	err := fmt.Errorf("%s %q is claimed (%s): %w", n.Kind, n.Name, strings.Join(held, ", "), errs.ErrBusy)
	return errs.WithHint(err, "whoever has claimed it gives it back; containerd does when the container or snapshot is removed")
}

// Activate gives a node its device for somebody who mounts its file system himself, and keeps it until Deactivate is called with the same
// claim, though nobody may have it open. A layer's device is read-only and shared by all who claim it. A file system that is smaller than the
// node is grown first. Activating again the same way returns the same. Claims do not outlive the machine's uptime. A node that is attached is ErrBusy, a
// foreign one ErrDamaged. While an Edit of this process writes to the node, activating it again the same way waits for nothing, and anything else is ErrBusy.
func (s *Store) Activate(ctx context.Context, name string, co ClaimOptions) (Device, error) {
	var d Device
	err := checkClaim(co.Claim)
	if err == nil {
		err = s.withNodeUnlessEdited(ctx, s.begin, name, func(o *op, n metadata.Node) (err error) {
			d, err = o.activateFor(ctx, n, co)
			return err
		})
	}
	if errors.Is(err, errEdited) {
		d, err = s.activated(ctx, name, co, err)
	}
	return d, opError("activate", name, err)
}

// activateFor is Activate for a node whose lock is held.
func (o *op) activateFor(ctx context.Context, n metadata.Node, co ClaimOptions) (Device, error) {
	if err := trusted(n, "mount"); err != nil {
		return Device{}, err
	}
	if co.Check != nil {
		if err := o.view(ctx, func(tx *metadata.Tx) error { return co.Check(&DocTx{tx}) }); err != nil {
			return Device{}, err
		}
	}
	held, err := o.claims(n.ID)
	if err != nil {
		return Device{}, err
	}
	if slices.Contains(held, claimAttached) {
		return Device{}, o.unclaimed(n)
	}
	readOnly := co.ReadOnly || n.Kind == metadata.KindLayer
	d, err := o.openDevice(ctx, n, readOnly)
	if err != nil {
		return Device{}, err
	}
	if !readOnly {
		err = o.explainFull(fitFS(ctx, d, n))
	}
	path := d.path
	if err = errors.Join(err, d.Close()); err == nil {
		err = o.promise(n, co.Claim, path)
	}
	if err != nil && slices.Contains(held, co.Claim) {
		return Device{}, err // the promise that was given before stands
	}
	if err != nil {
		return Device{}, undoing(ctx, err, func(context.Context) error { return o.endClaim(n, co.Claim) })
	}
	return o.described(n, readOnly), pointHandedOut.Hit()
}

// fitFS grows a file system that is smaller than its device. Its superblock tells, so that one that fits costs nothing more.
func fitFS(ctx context.Context, d *device, n metadata.Node) error {
	fs, err := fsutil.ReadFS(d.File)
	if err == nil && asLarge(fs, n) {
		return nil
	}
	if err := withMount(ctx, d, n, false, func(m *fsutil.Detached) error { return m.Sync() }); err != nil {
		return err
	}
	return fsutil.Flush(d.File)
}

// promise claims an active node and makes the link to its device.
func (o *op) promise(n metadata.Node, claim, path string) error {
	if err := o.claim(n.ID, claim); err != nil {
		return err
	}
	return o.giveLink(path, filepath.Join(o.s.pool.DeviceDir(), n.Name))
}

func (o *op) described(n metadata.Node, readOnly bool) Device {
	options := fsutil.OptionsFor(fsutil.MountOptions{Type: fsutil.Type(n.FS), ReadOnly: readOnly, Extra: o.s.pool.Record().MountOptions})
	return Device{Path: filepath.Join(o.s.pool.DeviceDir(), n.Name), FS: n.FS, ReadOnly: readOnly, Options: options}
}

// Deactivate ends a claim of Activate. The node's device goes when nobody claims it or has it open any more. A claim that is not there is
// no error.
func (s *Store) Deactivate(ctx context.Context, name, claim string) error {
	err := checkClaim(claim)
	if err == nil {
		err = s.withNode(ctx, s.hold, name, func(o *op, n metadata.Node) error { return o.endClaim(n, claim) })
	}
	return opError("deactivate", name, err)
}

// endClaim drops a claim on a node whose lock is held, and the device with the last one.
func (o *op) endClaim(n metadata.Node, claim string) error {
	if _, err := o.dropClaim(n, claim); err != nil {
		return err
	}
	return o.letGo(n)
}

// letGo is release for a node that others than this program may have mounted: its device goes with the last of them.
func (o *op) letGo(n metadata.Node) error {
	held, err := o.claims(n.ID)
	if err == nil && len(held) == 0 {
		err = o.putAway(n.ID)
	}
	if err != nil {
		o.KeepMark(n.ID) // the next to come tries again
	}
	return err
}

// dropClaim drops a claim, and before it the link that only this one promised, and tells whether it was there. Whoever comes after a crash finds the
// device by its mark.
func (o *op) dropClaim(n metadata.Node, claim string) (was bool, err error) {
	if err := o.Mark(n.ID); err != nil {
		return false, err
	}
	held, err := o.claims(n.ID)
	if err != nil {
		return false, err
	}
	if !slices.ContainsFunc(held, func(other string) bool { return other != claim }) {
		if err := o.removeLink(n.Name); err != nil {
			return false, err
		}
	}
	was = slices.Contains(held, claim)
	if err := o.unclaim(n.ID, claim); err != nil {
		return was, err
	}
	if err := pointUnclaim.Hit(); err != nil {
		o.KeepMark(n.ID)
		return was, err
	}
	return was, nil
}

// isOpen tells whether somebody has the device of a node open.
func (o *op) isOpen(n metadata.Node) (bool, error) {
	info, err := o.dm().Info(o.ref(n.ID))
	if errors.Is(err, devmapper.ErrNotFound) {
		return false, nil
	}
	return info.OpenCount > 0, err
}
