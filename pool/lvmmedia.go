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

// open activates what is not active for as long as it is open.
func (v volumes) open(ctx context.Context, write bool) (_ *media, err error) {
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
			return v.lvm.Deactivate(undo, h.asleep()...)
		}
		if data, metadata, err = v.devs(); err != nil {
			return nil, err
		}
	}
	dataName, metadataName := v.names()
	for _, part := range []struct {
		dev  devmapper.DevNum
		name string
		to   **part
	}{{data, dataName, &m.data}, {metadata, metadataName, &m.metadata}} {
		path, err := v.p.DeviceNode(part.dev)
		if err != nil {
			return nil, err
		}
		if *part.to, err = openPart(path, 0, write); err != nil {
			return nil, err
		}
		(*part.to).name = part.name
	}
	return m, nil
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
