package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointLVMMetadata = fault.New("pool.lvm.metadata-volume")
	pointLVMData     = fault.New("pool.lvm.data-volume")
	pointLVMRemoved  = fault.New("pool.lvm.volumes-removed")
)

const defaultDataPercent = 95

// checkVolumes tells whether a spec of a pool on volumes asks for something that can be.
func (spec Spec) checkVolumes() error {
	bad := func(what string) error {
		return fmt.Errorf("create pool %q: %s: %w", spec.Name, what, errs.ErrInvalid)
	}
	switch {
	case (spec.VG == "") == (spec.Device == ""):
		return bad("either a volume group or a disk to make one on")
	case spec.DataPercent < 0 || spec.DataPercent > 100:
		return bad(fmt.Sprintf("%d%% for data: 1 to 100", spec.DataPercent))
	case spec.DataPercent != 0 && spec.DataSize != 0:
		return bad("the data has a size or a part of the volume group, not both")
	case spec.ThinPool != "" && spec.VG == "":
		return bad("a thin pool is in a volume group")
	case spec.ThinPool != "" && (spec.DataSize != 0 || spec.DataPercent != 0 || spec.MetadataSize != 0):
		return bad("the pool gets the sizes of the thin pool whose place it takes")
	}
	if spec.VG != "" {
		return lvm.ValidNames(spec.VG, spec.ThinPool)
	}
	return nil
}

// planVolumes finds out what the volumes of a pool are to be, without changing anything, and puts their sizes into the
// spec.
func (spec *Spec) planVolumes(ctx context.Context, uuid string) (*metadata.LVM, error) {
	c := lvm.New()
	if spec.Device != "" {
		return spec.planGroup(ctx, c, uuid)
	}
	vg, err := c.VGByName(ctx, spec.VG)
	if errors.Is(err, errs.ErrNotFound) {
		return nil, errs.WithHint(err, "vgs shows the volume groups that there are")
	}
	if err == nil {
		err = complete(vg)
	}
	if err != nil {
		return nil, err
	}
	lvs, err := c.LVs(ctx, vg.UUID)
	if err != nil {
		return nil, err
	}
	l := &metadata.LVM{VG: vg.Name, VGUUID: vg.UUID}
	l.DataLV, l.MetadataLV = volumeNames(vg.Name, spec.Name, uuid)
	for _, lv := range lvs {
		if lv.Name == l.DataLV || lv.Name == l.MetadataLV {
			err := fmt.Errorf("volume %s/%s: %w", vg.Name, lv.Name, errs.ErrExists)
			return nil, errs.WithHint(err, "it is of another pool, or somebody else's; choose another name for the pool, or rename it (lvrename)")
		}
	}
	if spec.ThinPool != "" {
		return l, spec.planTakeover(ctx, takeover{c: c, vg: vg, lvs: lvs}, l)
	}
	return l, spec.fit(vg)
}

// volumeNames are what the volumes are called: after the pool where lvm2 takes that.
func volumeNames(vg, pool, uuid string) (data, meta string) {
	prefix := "dmlayer-" + pool
	if lvm.ValidNames(vg, prefix+"-metadata") != nil {
		prefix = "dmlayer-" + uuid[:12]
	}
	return prefix + "-data", prefix + "-metadata"
}

// fit computes the sizes in a group with that much room. What the data does not get is left for the metadata and for its growth.
func (spec *Spec) fit(vg lvm.VG) error {
	extent := vg.ExtentSize
	up := func(n int64) int64 { return (n + extent - 1) / extent * extent }
	free := vg.Free / extent * extent
	data := up(spec.DataSize)
	if data == 0 {
		data = up(free / 100 * int64(defaulted(spec.DataPercent, defaultDataPercent)))
	}
	meta := func() int64 {
		computed := thinpool.MetadataSize(uint64(data), devmapper.SectorsOf(uint64(spec.BlockSize)))
		return min(up(defaulted(spec.MetadataSize, int64(computed))), max(int64(thinpool.MaxMetadataSize)/extent*extent, extent))
	}
	if spec.DataSize == 0 { // room for the metadata, and for as much again
		data = max(min(data, free-2*meta()), 0)
	}
	spec.DataSize, spec.MetadataSize = data, meta()
	if data == 0 || data+spec.MetadataSize > free {
		err := fmt.Errorf("%d bytes for data and %d for metadata: volume group %q has %d free: %w", data, spec.MetadataSize, vg.Name, vg.Free, errs.ErrNoSpace)
		return errs.WithHint(err, "add a disk to the volume group (vgextend), or ask for less with --data-size or --data-percent")
	}
	return nil
}

// create makes the volumes. What only they tell is put into the pool's record.
func (v volumes) create(ctx context.Context) error {
	r := &v.p.record
	l := r.Backing.LVM
	if l.MadeVG {
		// Held until the volumes are active, which keep others away.
		unlock, err := v.p.files.lockDisks(ctx)
		if err != nil {
			return err
		}
		defer unlock()
		if err := v.makeGroup(ctx); err != nil {
			return err
		}
	}
	vg, err := v.group(ctx)
	if err != nil {
		return err
	}
	l.VGUUID = vg.UUID
	var at places
	if l.Replaced != nil {
		if at, err = v.removeThinPool(ctx, vg); err != nil {
			return err
		}
	}
	if err := v.makeVolume(ctx, vg, lvm.LVSpec{Name: l.MetadataLV, Size: r.Backing.MetadataSize, Tags: []string{tagMetadata}, Ranges: at.metadata}); err != nil {
		return err
	}
	if err := pointLVMMetadata.Hit(); err != nil {
		return err
	}
	if err := v.makeVolume(ctx, vg, lvm.LVSpec{Name: l.DataLV, Size: r.Backing.DataSize, Tags: []string{tagData}, Ranges: at.data}); err != nil {
		return err
	}
	if err := pointLVMData.Hit(); err != nil {
		return err
	}
	h, err := v.find(ctx)
	if err == nil {
		err = v.whole(h)
	}
	if err != nil {
		return err
	}
	l.DataUUID, l.MetadataUUID = h.data[0].UUID, h.metadata[0].UUID
	// Where the host has no room for a spare the pool is made all the same, and pool check says so.
	if err := v.p.files.makeSpare(ctx, r.Backing.MetadataSize); err != nil && !errors.Is(err, errs.ErrNoSpace) {
		return err
	}
	return nil
}

// makeVolume makes one, at its places if they are given and can be had.
func (v volumes) makeVolume(ctx context.Context, vg lvm.VG, o lvm.LVSpec) error {
	o.Tags = append(o.Tags, tagOurs, v.tag())
	o.Keep = v.p.record.Backing.LVM.MadeVG // of the disk they have been wiped, where that is put back if need be
	err := v.lvm.CreateLV(ctx, vg, o)
	if err == nil || len(o.Ranges) == 0 || ctx.Err() != nil || errors.Is(err, errs.ErrExists) {
		return err
	}
	o.Ranges = nil
	return v.lvm.CreateLV(ctx, vg, o)
}

// remove takes away what create made, as far as it is there and has the pool's tag.
func (v volumes) remove(ctx context.Context) error {
	l := v.p.record.Backing.LVM
	h, err := v.find(ctx)
	switch {
	case errors.Is(err, errs.ErrNotFound) && !l.MadeVG:
		return v.gone(err)
	case err != nil && !errors.Is(err, errs.ErrNotFound):
		return err
	case err == nil:
		if err := v.removeFrom(ctx, h); err != nil {
			return err
		}
	}
	if l.MadeVG {
		if err := v.removeDisk(ctx); err != nil {
			return err
		}
	}
	return removeFiles(append(v.p.files.besideMetadata(), v.p.files.repaired())...)
}

// present looks whether the volume group is there, and all of it, before a destroy begins, which must come to its end.
func (v volumes) present(ctx context.Context) error {
	h, err := v.find(ctx)
	if err != nil {
		return v.gone(err)
	}
	if err := complete(h.vg); err != nil {
		return err
	}
	return h.unused()
}

// complete is ErrDamaged for a volume group of which disks are missing: lvm2 does not change it.
func complete(vg lvm.VG) error {
	if vg.MissingPVs == 0 {
		return nil
	}
	err := fmt.Errorf("volume group %q: %d physical volumes are missing: %w", vg.Name, vg.MissingPVs, errs.ErrDamaged)
	return errs.WithHint(err, "attach their disks (pvs -o+missing shows them), or take them out of the group: vgreduce --removemissing "+vg.Name)
}

func (v volumes) gone(err error) error {
	if err = v.missing(err); !errors.Is(err, errs.ErrDamaged) {
		return err
	}
	return errs.WithHint(err, "attach its disks; if they are gone for good, remove the folder "+v.p.files.dir()+" by hand")
}

// removeFrom removes the volumes from their group, and the group if it was made for them and holds nothing else.
func (v volumes) removeFrom(ctx context.Context, h holding) error {
	l := v.p.record.Backing.LVM
	if err := h.unused(); err != nil {
		return err
	}
	if err := v.lvm.RemoveLVs(ctx, h.all()...); err != nil {
		return err
	}
	if err := pointLVMRemoved.Hit(); err != nil {
		return err
	}
	if l.Replaced != nil {
		return v.restoreThinPool(ctx, h.vg)
	}
	if l.MadeVG {
		return v.removeGroup(ctx, h.vg)
	}
	return nil
}
