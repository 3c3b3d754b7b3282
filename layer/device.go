package layer

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointDeviceActive = fault.New("layer.device.activated")
	pointUnclaimed    = fault.New("layer.release.unclaimed")
)

// device is an activated node that is held open, so that its minor number cannot become another's.
type device struct {
	*os.File
	path string
	dev  devmapper.DevNum
}

// seen is what the kernel said of the device of the node that the operation locked last, so that it
// need not be asked again: while the lock is held nobody else makes or removes it, but a removal that
// was deferred.
type seen struct {
	id     metadata.ThinID
	absent bool
	unmade bool // it had one without a table, until now
	dev    devmapper.DevNum
}

// knownAbsent tells whether a node whose lock is held was seen to have no device.
func (o *op) knownAbsent(id metadata.ThinID) bool { return o.seen.id == id && o.seen.absent }

// Close closes the device so that it is closed when this returns, though another goroutine may be
// starting a program: the removal that follows must not find a copy of the descriptor.
func (d *device) Close() error { return fsutil.BetweenStarts(d.File.Close) }

func (o *op) ref(id metadata.ThinID) devmapper.Ref { return devmapper.ByUUID(o.s.pool.DeviceUUID(id)) }

func (o *op) dm() *devmapper.Client { return o.s.pool.Devmapper() }

// openDevice activates a node, or adopts the device that it has, and opens it. The node's lock is
// held. A node that is active in the other way (read-only, writable) is activated anew if nobody uses
// it, and ErrBusy otherwise; a writable device serves a reader.
func (o *op) openDevice(ctx context.Context, n metadata.Node, readOnly bool) (*device, error) {
	if !readOnly {
		if err := o.mayWrite(); err != nil {
			return nil, err
		}
	}
	for {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("open thin device %d: %w", n.ID, err)
		}
		info, fresh, err := o.activate(n, readOnly)
		if err != nil {
			return nil, err
		}
		if info == nil {
			continue
		}
		if err := pointDeviceActive.Hit(); err != nil {
			return nil, errors.Join(err, o.release(n))
		}
		d, err := o.openActive(n, *info, readOnly, fresh)
		if err != nil {
			return nil, errors.Join(err, o.release(n))
		}
		if d != nil {
			return d, nil
		}
	}
}

// mayWrite is ErrDamaged where the pool can only be read, as it was seen when the operation began. One that only takes devices away
// has not looked.
func (o *op) mayWrite() error {
	if o.Thin == nil {
		return nil
	}
	return o.Writable()
}

// activate makes sure that the node has a device of the right kind. It returns nil where the device
// changed under its hands and it is to be tried again; fresh says that it made the device.
func (o *op) activate(n metadata.Node, readOnly bool) (_ *devmapper.Info, fresh bool, _ error) {
	var info devmapper.Info
	err := devmapper.ErrNotFound
	if !o.knownAbsent(n.ID) {
		info, err = o.dm().Info(o.ref(n.ID))
	}
	if errors.Is(err, devmapper.ErrNotFound) {
		o.seen = seen{}
		if err := o.Mark(n.ID); err != nil {
			return nil, false, err
		}
		info, err = thinpool.Activate(o.dm(), o.spec(n, readOnly))
		switch {
		case err == nil:
			return &info, true, nil
		case errors.Is(err, devmapper.ErrExists):
			return nil, false, nil
		case errors.Is(err, unix.ENODATA):
			return nil, false, errs.WithHint(fmt.Errorf("node %q: thin device %d is not in the pool: %w", n.Name, n.ID, errs.ErrDamaged),
				"the pool lost it; see what dmlayer pool check says")
		}
		return nil, false, fmt.Errorf("activate %q: %w", n.Name, err)
	}
	if err != nil {
		return nil, false, err
	}
	switch {
	case !info.Active:
		// Its maker died between create and resume: we have his lock.
		return nil, false, o.remove(n.ID)
	case info.Suspended:
		return nil, false, o.resumeDead(n.ID)
	case info.DeferredRemove:
		if err := o.Mark(n.ID); err != nil {
			return nil, false, err
		}
		if err := o.dm().CancelDeferredRemove(o.ref(n.ID)); err != nil && !errors.Is(err, devmapper.ErrBusy) && !errors.Is(err, devmapper.ErrNotFound) {
			return nil, false, err
		}
		return nil, false, nil
	case info.ReadOnly && !readOnly:
		// Whoever was promised a device that cannot be written to keeps it, open or not.
		if err := o.unclaimed(n); err != nil {
			return nil, false, err
		}
		err := o.remove(n.ID)
		if errors.Is(err, devmapper.ErrBusy) {
			return nil, false, o.busy(n, info.Dev)
		}
		return nil, false, err
	}
	return &info, false, nil
}

// spec says how a node is activated: always with the size that the record has.
func (o *op) spec(n metadata.Node, readOnly bool) thinpool.ThinSpec {
	return thinpool.ThinSpec{
		Name: o.s.pool.DeviceName(n.ID), UUID: o.s.pool.DeviceUUID(n.ID), Pool: o.Device, ID: thinpool.ID(n.ID),
		Size: devmapper.SectorsOf(uint64(n.Size)), ReadOnly: readOnly,
	}
}

// openActive opens a device and checks that it is the node's: between the look-up and the open the
// minor number may have become another's. It returns nil where it has.
func (o *op) openActive(n metadata.Node, info devmapper.Info, readOnly, fresh bool) (*device, error) {
	f, path, err := o.s.pool.OpenDevice(info.Dev, !readOnly)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENOENT) || errors.Is(err, errs.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	d := &device{f, path, info.Dev}
	behind, err := o.dm().Info(devmapper.ByDev(info.Dev))
	if err == nil && behind.UUID != o.s.pool.DeviceUUID(n.ID) {
		err = devmapper.ErrNotFound
	}
	if err == nil && !readOnly && !fresh {
		err = o.fitTable(n, d)
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, devmapper.ErrNotFound) {
			return nil, nil
		}
		return nil, err
	}
	return d, nil
}

// fitTable grows the device of a node whose resize died before the table was loaded.
func (o *op) fitTable(n metadata.Node, d *device) error {
	size, err := fsutil.SizeOf(d.File)
	if err != nil || size >= uint64(n.Size) {
		return err
	}
	return o.loadSize(n)
}

// loadSize loads a table of the recorded size.
func (o *op) loadSize(n metadata.Node) error {
	_, err := thinpool.Resize(o.dm(), o.ref(n.ID), o.spec(n, false))
	return err
}

// remove takes a node's kernel device away, which must not be in use; one that is not there is no
// error.
func (o *op) remove(id metadata.ThinID) error {
	if o.knownAbsent(id) {
		return nil
	}
	_, err := o.dm().Remove(o.ref(id), devmapper.RemoveOptions{})
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	return err
}

// putAway takes the device of a node away that an operation has finished with. Where somebody looks at it
// from outside for the moment, it goes with him.
func (o *op) putAway(id metadata.ThinID) error {
	err := o.remove(id)
	if errors.Is(err, devmapper.ErrBusy) {
		_, err = o.dm().Remove(o.ref(id), devmapper.RemoveOptions{Deferred: true})
		err = notFoundIsNil(err)
	}
	return err
}

// release deactivates a node that nobody uses. One that is claimed or mounted stays; one that somebody
// merely has open goes at the last close, unless a later activation adopts it.
func (o *op) release(n metadata.Node) (err error) {
	defer func() {
		if err != nil {
			o.KeepMark(n.ID) // the next to come tries again
		}
	}()
	claims, err := o.claims(n.ID)
	if err != nil || len(claims) > 0 {
		return err
	}
	if err := pointUnclaimed.Hit(); err != nil {
		return err
	}
	err = o.remove(n.ID)
	if !errors.Is(err, devmapper.ErrBusy) {
		return err
	}
	info, err := o.dm().Info(o.ref(n.ID))
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	mounts, err := fsutil.MountsOf(info.Dev.Major, info.Dev.Minor)
	if err != nil || len(mounts) > 0 {
		return err
	}
	_, err = o.dm().Remove(o.ref(n.ID), devmapper.RemoveOptions{Deferred: true})
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	return err
}

// quiesce takes away the device of a node that must not be in use: ErrBusy names who uses it. The
// node's lock is held, and stays held for as long as this must stay true.
func (o *op) quiesce(n metadata.Node) error {
	if err := o.unclaimed(n); err != nil {
		return err
	}
	err := o.remove(n.ID)
	if !errors.Is(err, devmapper.ErrBusy) {
		return err
	}
	info, err := o.dm().Info(o.ref(n.ID))
	if err != nil {
		return notFoundIsNil(err)
	}
	return o.busy(n, info.Dev)
}

// busy is ErrBusy with the names of those who use the node's device.
func (o *op) busy(n metadata.Node, dev devmapper.DevNum) error {
	err := fmt.Errorf("%s %q is %s: %w", n.Kind, n.Name, some(o.s.pool.Holders(dev)), errs.ErrBusy)
	return errs.WithHint(err, "dmlayer unmount "+n.Name+", or end what uses it")
}

// resumeDead resumes a node's device if it is suspended, and removes one that has never run. The node's lock
// is held, so whoever suspended it or was making it is dead.
func (o *op) resumeDead(id metadata.ThinID) error {
	info, err := o.dm().Info(o.ref(id))
	if errors.Is(err, devmapper.ErrNotFound) {
		o.seen = seen{id: id, absent: true}
		return nil
	}
	if err == nil {
		o.seen = seen{id: id, dev: info.Dev}
	}
	if err == nil && !info.Active {
		return o.removeUnmade(id)
	}
	if err != nil || !info.Suspended {
		return err
	}
	if _, err := o.dm().Resume(o.ref(id), devmapper.ResumeOptions{}); err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return fmt.Errorf("resume thin device %d: %w", id, err)
	}
	o.s.log.Info("resumed a device that a dead process had suspended", "id", id)
	return nil
}

// removeUnmade removes a device without a table, also one that somebody has claimed: his word stays, and the next
// activation makes the device anew.
func (o *op) removeUnmade(id metadata.ThinID) error {
	err := o.remove(id)
	if errors.Is(err, devmapper.ErrBusy) { // somebody looks at it from outside
		return nil
	}
	if err == nil {
		o.seen = seen{id: id, absent: true, unmade: true}
	}
	return err
}

// removeFile removes a file or link; one that is not there is no error.
func removeFile(path string) error {
	if err := unix.Unlink(path); err != nil && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unlink", Path: path, Err: err}
	}
	return nil
}
