package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointLVMTaken    = fault.New("pool.lvm.thin-pool-removed")
	pointLVMRestored = fault.New("pool.lvm.thin-pool-restored")
)

// takeover looks at a thin pool of lvm2 whose place a pool is to take.
type takeover struct {
	c   *lvm.Client
	vg  lvm.VG
	lvs []lvm.LV
}

func (t takeover) named(name string) (lvm.LV, bool) {
	i := slices.IndexFunc(t.lvs, func(lv lvm.LV) bool { return lv.Name == name })
	if i < 0 {
		return lvm.LV{}, false
	}
	return t.lvs[i], true
}

// planTakeover looks whether the thin pool can be had, and takes note of what it is like.
func (spec *Spec) planTakeover(ctx context.Context, t takeover, l *metadata.LVM) error {
	name := t.vg.Name + "/" + spec.ThinPool
	lv, ok := t.named(spec.ThinPool)
	if !ok {
		return fmt.Errorf("thin pool %s: %w", name, errs.ErrNotFound)
	}
	if lv.Type != "thin-pool" {
		return fmt.Errorf("volume %s is no thin pool, but %s: %w", name, lv.Type, errs.ErrInvalid)
	}
	p := lv.ThinPool
	data, dok := t.named(p.DataLV)
	meta, mok := t.named(p.MetadataLV)
	if !dok || !mok || data.Partial || meta.Partial {
		return fmt.Errorf("thin pool %s: its data or metadata is missing: %w", name, errs.ErrDamaged)
	}
	if data.Type != "linear" || meta.Type != "linear" {
		err := fmt.Errorf("thin pool %s lies on %s and %s volumes: %w", name, data.Type, meta.Type, errs.ErrUnsupported)
		return errs.WithHint(err, "remove it, and make the pool on the free extents of the volume group")
	}
	if err := t.empty(ctx, name, lv, meta); err != nil {
		return err
	}
	_, spare := t.named("lvol0_pmspare")
	l.Replaced = &metadata.LVMThinPool{
		Name: lv.Name, DataSize: data.Size, MetadataSize: meta.Size, ChunkSize: p.ChunkSize, Zero: p.Zero, Discards: p.Discards, WhenFull: p.WhenFull,
		NoSpare: !spare,
	}
	spec.DataSize, spec.MetadataSize, spec.BlockSize = data.Size, meta.Size, defaulted(spec.BlockSize, p.ChunkSize)
	return nil
}

// empty tells whether a thin pool holds nothing. What lvm2 knows of it is only half of it: the metadata tells of what others have made.
func (t takeover) empty(ctx context.Context, name string, lv, meta lvm.LV) (err error) {
	holds := func(what string) error {
		err := fmt.Errorf("thin pool %s holds something: %s: %w", name, what, errs.ErrBusy)
		return errs.WithHint(err, "make the pool elsewhere; lvs "+t.vg.Name+" shows the volumes of lvm2")
	}
	if n := lv.ThinPool.Thins; n > 0 {
		return holds(fmt.Sprintf("%d thin volumes", n))
	}
	if id := lv.ThinPool.TransactionID; id > 0 {
		return holds(fmt.Sprintf("its transaction id is %d, not 0", id))
	}
	// The metadata can be read while the pool is not active; that of a pool that somebody uses stays.
	if lv.Active {
		if err := t.c.Deactivate(ctx, lv); err != nil {
			return fmt.Errorf("thin pool %s: %w", name, err)
		}
		defer func() {
			undo, cancel := UndoContext(ctx)
			defer cancel()
			err = errors.Join(err, t.c.Activate(undo, lv))
		}()
	}
	if err := t.c.ActivateComponent(ctx, meta); err != nil {
		return err
	}
	defer func() {
		undo, cancel := UndoContext(ctx)
		defer cancel()
		err = errors.Join(err, t.c.DeactivateComponent(undo, meta))
	}()
	what, err := contents(ctx, devmapper.UUID(meta.DMUUID()))
	if err != nil {
		return fmt.Errorf("metadata of thin pool %s: %w", name, err)
	}
	if what != "" {
		return holds(what)
	}
	return nil
}

// contents says what is in the metadata on an active volume, "" for nothing.
func contents(ctx context.Context, uuid devmapper.UUID) (string, error) {
	dev, err := componentOf(uuid)
	if err != nil {
		return "", err
	}
	path, err := fsutil.DevicePath(fsutil.DevNum(dev))
	if err != nil {
		return "", err
	}
	f, err := openPart(path, 0, false)
	if err != nil {
		return "", err
	}
	defer f.file.Close()
	block := make([]byte, thinmeta.BlockSize)
	if _, err := f.ReadAt(block, 0); err != nil {
		return "", err
	}
	if !slices.ContainsFunc(block, func(b byte) bool { return b != 0 }) {
		return "", nil // never used: the kernel would format it
	}
	m, err := thinmeta.Open(f, thinmeta.Options{})
	if err != nil {
		return "", fmt.Errorf("%w: %w", err, errs.ErrBusy) // could not tell is in use
	}
	super := m.Superblock()
	devices := 0
	for _, err := range m.Devices(ctx) {
		if err != nil {
			return "", err
		}
		devices++
	}
	switch {
	case devices > 0:
		return fmt.Sprintf("%d thin devices that lvm2 does not know of", devices), nil
	case super.TransactionID != 0:
		return fmt.Sprintf("transaction id %d in its metadata", super.TransactionID), nil
	case super.DataSpace.Allocated > 0:
		return fmt.Sprintf("%d blocks of data", super.DataSpace.Allocated), nil
	}
	return "", nil
}

// componentOf finds the device of a hidden volume, whose UUID may have a suffix.
func componentOf(uuid devmapper.UUID) (devmapper.DevNum, error) {
	dm, err := devmapper.Open()
	if err != nil {
		return devmapper.DevNum{}, kernelError(err)
	}
	defer dm.Close()
	list, err := dm.List(uuid)
	if err != nil {
		return devmapper.DevNum{}, kernelError(err)
	}
	for _, d := range list {
		if d.UUID == uuid || strings.HasPrefix(string(d.UUID), string(uuid)+"-") {
			return d.Dev, nil
		}
	}
	return devmapper.DevNum{}, fmt.Errorf("lvm2 did not activate it: %w", errs.ErrUnsupported)
}

// places are where volumes are to lie.
type places struct{ data, metadata []string }

// removeThinPool removes the thin pool whose place the volumes take, and tells where it was. One that has gone meanwhile, or is not empty
// any more, is not touched.
func (v volumes) removeThinPool(ctx context.Context, vg lvm.VG) (at places, err error) {
	r := v.p.record.Backing.LVM.Replaced
	lvs, err := v.lvm.LVs(ctx, vg.UUID)
	if err != nil {
		return at, err
	}
	t := takeover{v.lvm, vg, lvs}
	lv, ok := t.named(r.Name)
	if !ok || lv.Type != "thin-pool" {
		return at, fmt.Errorf("thin pool %s/%s is not there any more: %w", vg.Name, r.Name, errs.ErrNotFound)
	}
	data, _ := t.named(lv.ThinPool.DataLV)
	meta, _ := t.named(lv.ThinPool.MetadataLV)
	if err := t.empty(ctx, vg.Name+"/"+r.Name, lv, meta); err != nil {
		return at, err
	}
	at = places{data.Ranges, meta.Ranges}
	if err := v.lvm.RemoveLVs(ctx, lv); err != nil {
		return at, err
	}
	return at, pointLVMTaken.Hit()
}

// restoreThinPool makes the thin pool again, unless it is there.
func (v volumes) restoreThinPool(ctx context.Context, vg lvm.VG) error {
	r := v.p.record.Backing.LVM.Replaced
	lv, there, err := v.replaced(ctx, vg)
	if err != nil {
		return err
	}
	if !there {
		spec := lvm.ThinPoolSpec{
			Name: r.Name, Size: r.DataSize, MetadataSize: r.MetadataSize, NoSpare: r.NoSpare,
			ThinPool: lvm.ThinPool{ChunkSize: r.ChunkSize, Zero: r.Zero, Discards: r.Discards},
		}
		err := v.lvm.CreateThinPool(ctx, vg, spec)
		if err != nil && !spec.NoSpare && ctx.Err() == nil && !errors.Is(err, errs.ErrExists) {
			spec.NoSpare = true // its room is somebody else's by now
			err = v.lvm.CreateThinPool(ctx, vg, spec)
		}
		if err != nil {
			return err
		}
		if lv, there, err = v.replaced(ctx, vg); err != nil {
			return err
		}
	}
	if !there || lv.Type != "thin-pool" {
		v.p.log.Warn("another volume is there, and no thin pool is made in its place", "volume", vg.Name+"/"+r.Name, "type", lv.Type)
		return nil
	}
	if lv.ThinPool.Thins == 0 && r.WhenFull != "" && lv.ThinPool.WhenFull != r.WhenFull {
		if err := v.lvm.SetWhenFull(ctx, lv, r.WhenFull); err != nil {
			return err
		}
	}
	return pointLVMRestored.Hit()
}

// replaced looks for a volume with the name of the thin pool whose place the volumes have taken.
func (v volumes) replaced(ctx context.Context, vg lvm.VG) (lv lvm.LV, there bool, err error) {
	lvs, err := v.lvm.LVs(ctx, vg.UUID)
	if err != nil {
		return lv, false, err
	}
	lv, there = takeover{v.lvm, vg, lvs}.named(v.p.record.Backing.LVM.Replaced.Name)
	return lv, there, nil
}
