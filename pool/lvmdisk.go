package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointLVMSaved        = fault.New("pool.lvm.disk-saved")
	pointLVMWiped        = fault.New("pool.lvm.disk-wiped")
	pointLVMPV           = fault.New("pool.lvm.physical-volume")
	pointLVMGroup        = fault.New("pool.lvm.group")
	pointLVMGroupRemoved = fault.New("pool.lvm.group-removed")
	pointLVMPVRemoved    = fault.New("pool.lvm.physical-volume-removed")
	pointLVMDiskRestored = fault.New("pool.lvm.disk-restored")
)

// What a physical volume has before its first extent, and how large the extents are that lvm2 makes.
const (
	pvHead   = 1 << 20
	pvExtent = 4 << 20
)

// takeDisk opens a disk for nobody else, and tells what would have to be wiped on it. One that somebody uses is ErrBusy, one that
// carries something ErrExists unless that may be wiped; "could not tell" is "in use".
func takeDisk(ctx context.Context, path string, wipe bool) (t *takenDisk, err error) {
	t = &takenDisk{role: "LVM", path: path}
	if err := lookAtDisk(t); err != nil {
		return nil, err
	}
	d := &rawDevices{wipe: wipe}
	if err = d.claim(t); err == nil {
		err = within(ctx, func() error { return d.blank(t) })
	}
	if err != nil && t.file != nil {
		err = errors.Join(err, t.file.Close())
	}
	return t, err
}

// lookAtDisk tells whether a disk can hold a volume group at all.
func lookAtDisk(t *takenDisk) error {
	f, err := fsutil.OpenDevice(t.path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	if t.disk, err = fsutil.DescribeDisk(f); err != nil {
		return err
	}
	switch {
	case t.disk.ReadOnly:
		return fmt.Errorf("%s is read-only: %w", t.part(), errs.ErrUnsupported)
	case t.disk.SectorSize > maxDiskSector:
		return fmt.Errorf("%s has sectors of %d bytes: %w", t.part(), t.disk.SectorSize, errs.ErrUnsupported)
	}
	return nil
}

// planGroup looks at the disk on which a volume group is to be made.
func (spec *Spec) planGroup(ctx context.Context, c *lvm.Client, uuid string) (*metadata.LVM, error) {
	path, err := filepath.Abs(spec.Device)
	if err != nil {
		return nil, err
	}
	t, err := takeDisk(ctx, path, spec.Force)
	if err != nil {
		return nil, err
	}
	if err := t.file.Close(); err != nil {
		return nil, err
	}
	l := &metadata.LVM{MadeVG: true, Device: path, VG: "dmlayer-" + spec.Name}
	_, err = c.VGByName(ctx, l.VG)
	// Taken, twice even, or no name for lvm2; or one that lvm2 does not take because of links that it has left when it was killed, without udev.
	if !errors.Is(err, errs.ErrNotFound) || exists(filepath.Join("/dev", l.VG)) {
		if err != nil && !errors.Is(err, errs.ErrNotFound) && !errors.Is(err, errs.ErrDamaged) && !errors.Is(err, errs.ErrInvalid) {
			return nil, err
		}
		l.VG = "dmlayer-" + uuid[:12]
	}
	l.DataLV, l.MetadataLV = volumeNames(l.VG, spec.Name, uuid)
	free := max(t.disk.Size-pvHead, 0) / pvExtent * pvExtent
	if err := spec.fit(lvm.VG{Name: l.VG, ExtentSize: pvExtent, Free: free}); err != nil {
		return nil, errs.WithHint(err, fmt.Sprintf("%s has %d bytes", path, t.disk.Size))
	}
	return l, nil
}

// savedPlace says which disk is saved, for as long as nothing on it says so. Numbers and paths mean nothing after a reboot.
type savedPlace struct {
	Path     string `json:"path"`
	Number   string `json:"number"`             // of the device
	Boot     string `json:"boot"`               // the boot id
	Identity string `json:"identity,omitempty"` // of the disk that has the number, as the kernel tells it; "": it does not
}

// forgetDisk drops what was saved of a disk, once the pool has been made.
func (f files) forgetDisk() error { return removeFiles(f.savedDisks()+".new", f.savedDisks()) }

// written are the parts of the disk that a create writes to, beside signatures: lvm2's head, the beginning of the metadata, which is
// the first volume, and that of the data, where the label is.
func written(r metadata.Pool) []fsutil.Range {
	bitmaps := (r.Backing.DataSize/r.BlockSize+r.Backing.MetadataSize/thinmeta.BlockSize)/bitmapEntries + 2
	meta := min((2*bitmaps+formatSlack)*thinmeta.BlockSize, r.Backing.MetadataSize)
	return []fsutil.Range{
		{Offset: 0, Length: pvHead + meta},
		{Offset: pvHead + r.Backing.MetadataSize, Length: max(r.BlockSize, 1<<20)},
	}
}

// saveDisk keeps what a create is going to overwrite.
func (v volumes) saveDisk(ctx context.Context, t *takenDisk) error {
	boot, err := bootID()
	if err != nil {
		return err
	}
	text, err := json.Marshal(savedPlace{Path: t.path, Number: t.disk.String(), Boot: string(boot), Identity: fsutil.Identity(t.disk.DevNum)})
	if err != nil {
		return err
	}
	saved := saving{role: rawDataRole, disk: t.file, size: t.disk.Size, place: text}
	for _, r := range fsutil.MergeRanges(append(written(v.p.record), t.wipe...)) {
		if r.Length = min(r.End(), t.disk.Size) - r.Offset; r.Length > 0 {
			saved.ranges = append(saved.ranges, r)
		}
	}
	if err := saveDisks(ctx, v.p.files.savedDisks(), []saving{saved}); err != nil {
		return fmt.Errorf("save what is on %s: %w", t.path, err)
	}
	return pointLVMSaved.Hit()
}

// makeGroup makes the volume group on the disk. What was on the disk is kept until the pool has been made.
func (v volumes) makeGroup(ctx context.Context) error {
	l := v.p.record.Backing.LVM
	if err := v.prepareDisk(ctx, l.Device); err != nil {
		return err
	}
	err := v.lvm.CreateGroup(ctx, l.VG, l.Device, v.p.record.UUID, v.tag(), pointLVMPV.Hit)
	if err == nil {
		err = pointLVMGroup.Hit()
	}
	return err
}

// prepareDisk looks at the disk once more, saves what is on it, and wipes it.
func (v volumes) prepareDisk(ctx context.Context, path string) (err error) {
	t, err := takeDisk(ctx, path, v.p.wipe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.file.Close()) }()
	if err := v.saveDisk(ctx, t); err != nil {
		return err
	}
	for _, r := range t.wipe {
		if err := fsutil.Zero(t.file, r); err != nil {
			return fmt.Errorf("wipe %s: %w", path, err)
		}
	}
	if err := fsutil.Flush(t.file); err != nil {
		return err
	}
	if t.partitions {
		if err := fsutil.RereadPartitions(t.file); err != nil {
			return err
		}
	}
	return pointLVMWiped.Hit()
}

// removeGroup removes the volume group that was made for the pool. One in which somebody has volumes by now stays.
func (v volumes) removeGroup(ctx context.Context, vg lvm.VG) error {
	now, err := v.lvm.VGByUUID(ctx, vg.UUID)
	if err != nil {
		return err
	}
	if !now.HasTag(v.tag()) || now.LVs > 0 {
		v.p.log.Info("the volume group has other volumes, and stays", "vg", now.Name)
		return nil
	}
	if err := v.lvm.RemoveVG(ctx, now); err != nil {
		return err
	}
	return pointLVMGroupRemoved.Hit()
}

// removeDisk takes lvm2's label off the disk, if it is in no group, or puts back what a create that failed has overwritten, the label last.
func (v volumes) removeDisk(ctx context.Context) error {
	pv, err := v.lvm.PVByUUID(ctx, lvm.FormatUUID(v.p.record.UUID))
	undo := v.p.record.State == metadata.PoolCreating
	switch {
	case err != nil && !errors.Is(err, errs.ErrNotFound):
		return err
	case err == nil && pv.VG != "":
		if undo {
			v.p.log.Warn("what a create that died has overwritten is not put back: its volume group has volumes of somebody else", "disk", pv.Name, "vg", pv.VG)
		}
	case undo:
		if err := v.restoreDisk(ctx, pv.Name); err != nil {
			return err
		}
	case err == nil:
		// From then on a disk that is not found has not to be waited for.
		if err := v.p.files.note(ctx, func(b *metadata.Backing) { b.LVM.GroupRemoved = true }); err != nil {
			return err
		}
		if err := v.lvm.RemovePV(ctx, pv); err != nil {
			return err
		}
		if err := pointLVMPVRemoved.Hit(); err != nil {
			return err
		}
	case !v.p.record.Backing.LVM.GroupRemoved:
		return v.gone(err)
	}
	return v.p.files.forgetDisk()
}

// restoreDisk writes back what was saved. path is where the disk was just seen, "" where lvm2 does not see it.
func (v volumes) restoreDisk(ctx context.Context, path string) (err error) {
	saved := v.p.files.savedDisks()
	if !exists(saved) {
		return nil // nothing was written yet
	}
	if path == "" {
		if path, err = v.findSaved(ctx); err != nil {
			return err
		}
	}
	f, err := fsutil.OpenExclusive(path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	size, err := fsutil.SizeOf(f)
	if err != nil {
		return err
	}
	err = eachSaved(saved, func(e saveEntry) error {
		if e.kind == savePlace {
			return nil
		}
		if e.kind == saveSize && e.Length != int64(size) || e.End() > int64(size) {
			return fmt.Errorf("%s has %d bytes, and is not the disk that was saved: %w", path, size, errs.ErrDamaged)
		}
		return nil
	})
	if err != nil {
		return err
	}
	label, err := putBack(ctx, saved, rawDataRole, f, labelSector)
	if err == nil {
		err = writeLast(f, label, labelSector)
	}
	if err != nil {
		return fmt.Errorf("put back what was on %s: %w", path, err)
	}
	// A disk that cannot have its partitions read again has them read when it is attached the next time.
	_ = fsutil.RereadPartitions(f)
	return pointLVMDiskRestored.Hit()
}
