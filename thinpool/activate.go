package thinpool

import (
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
)

// ActivatePool makes the device of a pool: create, load, resume. length is how
// much of the data device the pool uses; less than it has used before is
// refused. Whatever fails, nothing is left behind.
//
// Mind that the kernel formats a metadata device whose first 4 KiB are zero.
// The error is [devmapper.ErrExists] where name or uuid is taken.
func ActivatePool(c *devmapper.Client, name devmapper.Name, uuid devmapper.UUID, length devmapper.Sectors, t PoolTable) (devmapper.Info, error) {
	if err := t.Check(); err != nil {
		return devmapper.Info{}, err
	}
	info, err := activate(c, name, uuid, devmapper.LoadOptions{}, t.Target(length))
	if err != nil {
		return info, opError(fmt.Sprintf("activate pool %q", name), messageClassOfLoad(err), err)
	}
	return info, nil
}

// ReloadPool gives a pool another table, with one resume: to grow it, or to
// change its features. Growing the metadata device needs no more than this
// with the same table. Where the new table turns out wrong only when it is
// resumed (a length that is shorter than the pool), the kernel leaves the pool
// suspended with it; ReloadPool then puts the old one back.
func ReloadPool(c *devmapper.Client, ref devmapper.Ref, length devmapper.Sectors, t PoolTable) (devmapper.Info, error) {
	if err := t.Check(); err != nil {
		return devmapper.Info{}, err
	}
	what := fmt.Sprintf("reload pool %s", ref)
	old, err := onlyTarget(c, ref, PoolTarget)
	if err != nil {
		return devmapper.Info{}, opError(what, nil, err)
	}
	if now, err := ParsePoolTable(old.Params); err == nil && now.BlockSize != t.BlockSize {
		// The kernel takes the table and goes on with the blocks that it has.
		return devmapper.Info{}, opError(what, ErrInvalid, fmt.Errorf("blocks of %d sectors instead of %d", t.BlockSize, now.BlockSize))
	}
	if err := c.Load(ref, devmapper.LoadOptions{}, t.Target(length)); err != nil {
		return devmapper.Info{}, opError(what, nil, err)
	}
	info, err := c.Resume(ref, devmapper.ResumeOptions{})
	if err == nil {
		return info, nil
	}
	if err2 := c.Load(ref, devmapper.LoadOptions{}, old); err2 != nil {
		err = errors.Join(err, fmt.Errorf("put the old table back: %w", err2))
	} else if _, err2 := c.Resume(ref, devmapper.ResumeOptions{}); err2 != nil {
		err = errors.Join(err, fmt.Errorf("resume with the old table: %w", err2))
	}
	return devmapper.Info{}, opError(what, nil, err)
}

// ThinSpec says how a thin device is activated.
type ThinSpec struct {
	Name devmapper.Name
	UUID devmapper.UUID // may be empty
	Pool devmapper.DevNum
	ID   ID
	// Size is the device's own: a snapshot may have another than its origin,
	// and what lies beyond the end of a smaller one is hidden, not freed.
	Size     devmapper.Sectors
	ReadOnly bool
	// Origin is an external origin, see [ThinTable].
	Origin *devmapper.DevNum
}

func (s ThinSpec) load() (devmapper.LoadOptions, devmapper.Target, error) {
	t := ThinTable{Pool: s.Pool, ID: s.ID, Origin: s.Origin}
	return devmapper.LoadOptions{ReadOnly: s.ReadOnly}, t.Target(s.Size), t.Check()
}

// Activate makes the device of a thin device: create, load, resume. Whatever
// fails, nothing is left behind.
//
// The error is [devmapper.ErrExists] where name or uuid is taken, [ErrNoDevice]
// where the pool has no such id.
func Activate(c *devmapper.Client, s ThinSpec) (devmapper.Info, error) {
	what := fmt.Sprintf("activate thin %d as %q", s.ID, s.Name)
	options, target, err := s.load()
	if err != nil {
		return devmapper.Info{}, opError(what, nil, err)
	}
	info, err := activate(c, s.Name, s.UUID, options, target)
	if err != nil {
		return info, opError(what, messageClassOfLoad(err), err)
	}
	return info, nil
}

// messageClassOfLoad knows the one errno that says something about the pool;
// the others are about devices.
func messageClassOfLoad(err error) error {
	if errors.Is(err, errNoData) {
		return ErrNoDevice
	}
	return nil
}

func activate(c *devmapper.Client, name devmapper.Name, uuid devmapper.UUID, o devmapper.LoadOptions, t devmapper.Target) (devmapper.Info, error) {
	if _, err := c.Create(name, uuid); err != nil {
		return devmapper.Info{}, err
	}
	ref := devmapper.ByName(name)
	err := c.Load(ref, o, t)
	if err == nil {
		var info devmapper.Info
		if info, err = c.Resume(ref, devmapper.ResumeOptions{}); err == nil {
			return info, nil
		}
	}
	if rerr := discardDevice(c, ref); rerr != nil {
		err = errors.Join(err, fmt.Errorf("clean up: %w", rerr))
	}
	return devmapper.Info{}, err
}

// discardDevice removes a device that did not come to life; somebody who has
// opened it in the meantime only delays that.
func discardDevice(c *devmapper.Client, ref devmapper.Ref) error {
	_, err := c.Remove(ref, devmapper.RemoveOptions{})
	if errors.Is(err, devmapper.ErrBusy) {
		_, err = c.Remove(ref, devmapper.RemoveOptions{Deferred: true})
	}
	return err
}

// Resize gives an active thin device the size, the origin and the write
// protection of s, with one resume. Name and UUID of s are not looked at. The
// file system in it is not resized. Where it fails, the device runs on with its
// old table.
func Resize(c *devmapper.Client, ref devmapper.Ref, s ThinSpec) (devmapper.Info, error) {
	what := fmt.Sprintf("resize thin %d, device %s", s.ID, ref)
	options, target, err := s.load()
	if err != nil {
		return devmapper.Info{}, opError(what, nil, err)
	}
	if err := c.Load(ref, options, target); err != nil {
		return devmapper.Info{}, opError(what, messageClassOfLoad(err), err)
	}
	info, err := c.Resume(ref, devmapper.ResumeOptions{})
	if err == nil {
		return info, nil
	}
	if cerr := c.Clear(ref); cerr != nil {
		err = errors.Join(err, fmt.Errorf("drop the new table: %w", cerr))
	}
	return devmapper.Info{}, opError(what, nil, err)
}

// Deactivate removes the device of a pool or a thin device; what the pool has
// stays. The error is [devmapper.ErrBusy] where somebody uses it,
// [devmapper.ErrNotFound] where there is none.
func Deactivate(c *devmapper.Client, ref devmapper.Ref) error {
	if _, err := c.Remove(ref, devmapper.RemoveOptions{}); err != nil {
		return opError("deactivate", nil, err)
	}
	return nil
}

// ReadThin are the parameters and the size of an active thin device. The error
// is [devmapper.ErrNotFound] where there is no such device, [ErrWrongTarget]
// where it is no thin device.
func ReadThin(c *devmapper.Client, ref devmapper.Ref) (ThinTable, devmapper.Sectors, error) {
	target, err := onlyTarget(c, ref, ThinTarget)
	if err != nil {
		return ThinTable{}, 0, err
	}
	t, err := ParseThinTable(target.Params)
	if err != nil {
		return ThinTable{}, 0, fmt.Errorf("thinpool: table of %s: %w", ref, err)
	}
	return t, target.Length, nil
}

// ReadThinStatus is the state of an active thin device. Errors as of
// [ReadThin].
func ReadThinStatus(c *devmapper.Client, ref devmapper.Ref) (ThinStatus, error) {
	lines, err := c.Status(ref, devmapper.StatusOptions{NoFlush: true})
	if err != nil {
		return ThinStatus{}, opError("thin status", nil, err)
	}
	if len(lines) != 1 || lines[0].Type != ThinTarget {
		return ThinStatus{}, fmt.Errorf("thinpool: status of %s: not a live %s: %w", ref, ThinTarget, ErrWrongTarget)
	}
	s, err := ParseThinStatus(lines[0].Status)
	if err != nil {
		return ThinStatus{}, fmt.Errorf("thinpool: status of %s: %w", ref, err)
	}
	return s, nil
}
