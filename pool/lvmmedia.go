package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/lvm"
)

func (v volumes) paths(context.Context) (data, metadata string, err error) {
	d, m, err := v.devs()
	if err != nil {
		return "", "", err
	}
	for dev, to := range map[devmapper.DevNum]*string{d: &data, m: &metadata} {
		if dev == (devmapper.DevNum{}) {
			continue
		}
		if *to, err = v.p.DeviceNode(dev); err != nil {
			return "", "", err
		}
	}
	return data, metadata, nil
}

func (v volumes) names() (data, metadata string) {
	l := v.p.record.Backing.LVM
	return l.VG + "/" + l.DataLV, l.VG + "/" + l.MetadataLV
}

func (v volumes) devices(context.Context) (list []devmapper.DevNum, err error) {
	data, metadata, err := v.devs()
	for _, d := range []devmapper.DevNum{data, metadata} {
		if d != (devmapper.DevNum{}) {
			list = append(list, d)
		}
	}
	return list, err
}

// open activates what is not active for as long as it is open. Somebody else who does so may deactivate it again: then it is looked at once more.
func (v volumes) open(ctx context.Context, write bool) (*media, error) {
	m, err := v.openOnce(ctx, write)
	if errors.Is(err, errDeactivated) {
		m, err = v.openOnce(ctx, write)
	}
	return m, err
}

// errDeactivated says that a volume's device has gone since it was seen.
var errDeactivated = fmt.Errorf("a volume was deactivated meanwhile: %w", errs.ErrBusy)

func (v volumes) openOnce(ctx context.Context, write bool) (_ *media, err error) {
	m := &media{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	data, metadata, err := v.devs()
	if err != nil {
		return nil, err
	}
	if data == (devmapper.DevNum{}) || metadata == (devmapper.DevNum{}) {
		h, err := v.ready(ctx)
		if errors.Is(err, errs.ErrDamaged) {
			err = fmt.Errorf("%w: %w", err, errs.ErrNotFound)
		}
		if err != nil {
			return nil, err
		}
		m.release = func() error {
			undo, cancel := UndoContext(ctx)
			defer cancel()
			err := v.lvm.Deactivate(undo, h.asleep()...)
			if err != nil && !errors.Is(err, errs.ErrBusy) { // or had when lvm2 looked, and has closed them since
				err = v.lvm.Deactivate(undo, h.asleep()...)
			}
			if errors.Is(err, errs.ErrBusy) { // somebody else has opened them
				return nil
			}
			return err
		}
		if data, metadata, err = v.devs(); err != nil {
			return nil, err
		}
	}
	du, mu := v.dmUUIDs()
	dataName, metadataName := v.names()
	for _, want := range []struct {
		dev  devmapper.DevNum
		uuid devmapper.UUID
		name string
		to   **part
	}{{data, du, dataName, &m.data}, {metadata, mu, metadataName, &m.metadata}} {
		if *want.to, err = v.openVolume(want.dev, want.uuid, write); err != nil {
			return nil, err
		}
		(*want.to).name = want.name
	}
	return m, nil
}

// openVolume opens the device of a volume, which is errDeactivated where it is not there any more.
func (v volumes) openVolume(dev devmapper.DevNum, uuid devmapper.UUID, write bool) (*part, error) {
	if dev == (devmapper.DevNum{}) {
		return nil, errDeactivated
	}
	path, err := v.p.DeviceNode(dev)
	var p *part
	if err == nil {
		p, err = openPart(path, 0, write)
	}
	// Minors are reused: what was opened has to be what was asked for.
	if now, ierr := v.p.dm.Info(devmapper.ByDev(dev)); errors.Is(ierr, devmapper.ErrNotFound) || ierr == nil && now.UUID != uuid {
		if err == nil {
			_ = p.file.Close()
		}
		return nil, errDeactivated
	}
	return p, err
}

// check asks lvm2 only while the pool does not run: else the kernel tells.
func (v volumes) check(ctx context.Context, running bool) ([]Finding, error) {
	if running {
		return nil, nil
	}
	h, err := v.find(ctx)
	if errors.Is(err, errs.ErrNotFound) {
		return []Finding{NewFinding(FoundBackingMissing, "volume group "+v.p.record.Backing.LVM.VG, "%v", v.missing(err))}, nil
	}
	if err != nil {
		return nil, err
	}
	for _, lvs := range [][]lvm.LV{h.data, h.metadata} {
		if len(lvs) > 1 {
			return []Finding{NewFinding(FoundBackingTwice, "pool "+v.p.files.name, "%s and %s", lvs[0].Name, lvs[1].Name)}, nil
		}
	}
	if err := v.whole(h); err != nil {
		return []Finding{NewFinding(FoundBackingMissing, "volume group "+h.vg.Name, "%v", err)}, nil
	}
	return nil, nil
}

func (v volumes) install(ctx context.Context, path string) error { return installCopy(ctx, v, path) }
