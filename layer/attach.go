package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointAttachForeign = fault.New("layer.attach.marked")
	pointAttachActive  = fault.New("layer.attach.activated")
	pointDetachDropped = fault.New("layer.detach.dropped")
)

// Attach gives out a node's block device without mounting it, for a VM, and returns a path that stays
// the same for the node's life. Whoever gets a writable device may leave any file system on it, so the
// node is marked foreign. A layer is attached read-only. Attaching again the same way returns the same
// path; a node in use otherwise is ErrBusy.
func (s *Store) Attach(ctx context.Context, name string, readOnly bool) (string, error) {
	path, err := s.attach(ctx, name, readOnly)
	return path, opError("attach", name, err)
}

func (s *Store) attach(ctx context.Context, name string, readOnly bool) (string, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return "", err
	}
	defer o.Exit()
	n, err := o.lockNode(ctx, name)
	if err != nil {
		return "", err
	}
	readOnly = readOnly || n.Kind == metadata.KindLayer
	claim := claimAttached
	if readOnly {
		claim = claimAttachedReadOnly
	}
	held, err := o.claims(n.ID)
	if err != nil {
		return "", err
	}
	o.warnLost(n)
	again := slices.Contains(held, claim)
	if !again {
		// Nobody may have it mounted or open; several may read it.
		if !(readOnly && n.Kind == metadata.KindLayer) {
			if err := o.quiesce(n); err != nil {
				return "", err
			}
		}
		if !readOnly && !n.Foreign {
			if err := o.setForeign(ctx, &n, true); err != nil {
				return "", err
			}
		}
	}
	if err := o.Mark(n.ID); err != nil { // a claim without a device is found by it
		return "", err
	}
	if err := o.claim(n.ID, claim); err != nil {
		return "", err
	}
	path, err := o.handOut(ctx, n, readOnly)
	if err != nil && again {
		return "", err // the first one's promise stands
	}
	if err != nil {
		return "", undoing(ctx, err, func(context.Context) error { return errors.Join(o.unclaim(n.ID, claim), o.release(n)) })
	}
	return path, nil
}

// handOut activates a claimed node and makes its link.
func (o *op) handOut(ctx context.Context, n metadata.Node, readOnly bool) (string, error) {
	d, err := o.openDevice(ctx, n, readOnly)
	if err != nil {
		return "", err
	}
	if err := pointAttachActive.Hit(); err != nil {
		return "", errors.Join(err, d.Close())
	}
	link := filepath.Join(o.s.pool.DeviceDir(), n.Name)
	err = o.giveLink(d.path, link)
	return link, errors.Join(err, d.Close())
}

// giveLink makes the link to a device that is given out, in the place of one that is ours or nobody's.
func (o *op) giveLink(path, link string) error {
	err := unix.Symlink(path, link)
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EEXIST) {
		if err := o.ownLink(link); err != nil {
			return err
		}
	}
	return replaceLink(path, link)
}

// ownLink is ErrBusy where a link leads to the device of another pool, of the same name under another
// root. One that leads nowhere is nobody's.
func (o *op) ownLink(link string) error {
	var st unix.Stat_t
	if unix.Stat(link, &st) != nil {
		return nil
	}
	info, err := o.dm().Info(devmapper.ByDev(devmapper.DevNum{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}))
	if err != nil {
		return notFoundIsNil(err)
	}
	if _, ours := o.s.pool.ThinID(info.UUID); !ours && strings.HasPrefix(string(info.UUID), "DMLAYER-") {
		err := fmt.Errorf("%s is the link of another pool %q: %w", link, o.s.pool.Name(), errs.ErrBusy)
		return errs.WithHint(err, "give pools under different roots different names or run directories (--run)")
	}
	return nil
}

// removeLink removes a node's link, unless it is another pool's.
func (o *op) removeLink(name string) error {
	link := filepath.Join(o.s.pool.DeviceDir(), name)
	if _, err := os.Lstat(link); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if o.ownLink(link) != nil {
		return nil
	}
	return removeFile(link)
}

// replaceLink makes a symbolic link, at once in the place of one that is there.
func replaceLink(target, link string) error {
	if have, err := os.Readlink(link); err == nil && have == target {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(link), "."+filepath.Base(link)+".new")
	if err := removeFile(tmp); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	if err := os.Rename(tmp, link); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	return nil
}

// Detach takes a node's device back that Attach gave out. ErrBusy while somebody has it open; a node
// that is not attached is ErrNotFound.
func (s *Store) Detach(ctx context.Context, name string) error {
	return opError("detach", name, s.withNode(ctx, s.begin, name, (*op).detach))
}

func (o *op) detach(n metadata.Node) error {
	held, err := o.claims(n.ID)
	if err != nil {
		return err
	}
	if !slices.Contains(held, claimAttached) && !slices.Contains(held, claimAttachedReadOnly) {
		return fmt.Errorf("%s %q is not attached: %w", n.Kind, n.Name, errs.ErrNotFound)
	}
	if err := o.notOpen(n); err != nil {
		return err
	}
	if err := o.removeLink(n.Name); err != nil {
		return err
	}
	if err := o.Mark(n.ID); err != nil {
		return err
	}
	if err := errors.Join(o.unclaim(n.ID, claimAttached), o.unclaim(n.ID, claimAttachedReadOnly)); err != nil {
		return err
	}
	if err := pointDetachDropped.Hit(); err != nil {
		o.KeepMark(n.ID)
		return err
	}
	return o.release(n)
}

// notOpen is ErrBusy while somebody has an attached node's device open, other than through mounts of a
// layer, which share the activation.
func (o *op) notOpen(n metadata.Node) error {
	info, err := o.dm().Info(o.ref(n.ID))
	if err != nil || info.OpenCount == 0 {
		return notFoundIsNil(err)
	}
	mounts, err := fsutil.MountsOf(info.Dev.Major, info.Dev.Minor)
	if err != nil || len(mounts) > 0 {
		return err
	}
	return o.busy(n, info.Dev)
}
