package pool

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointLVMSaved        = fault.New("pool.lvm.disk-saved")
	pointLVMWiped        = fault.New("pool.lvm.disk-wiped")
	pointLVMPV           = fault.New("pool.lvm.physical-volume")
	pointLVMGroup        = fault.New("pool.lvm.group")
	pointLVMGroupRemoved = fault.New("pool.lvm.group-removed")
	pointLVMPVRemoved    = fault.New("pool.lvm.physical-volume-removed")
)

// What a physical volume has before its first extent, and how large the extents are that lvm2 makes.
const (
	pvHead   = 1 << 20
	pvExtent = 4 << 20
)

// lookAtDisk opens a disk for nobody else, and tells what it is and what would have to be wiped on it. One that somebody uses is
// ErrBusy, and so is one that carries something, unless that may be wiped. What could not be told is taken for use.
func lookAtDisk(path string, wipe bool) (_ *os.File, d fsutil.Disk, ranges []fsutil.Range, err error) {
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: %w", path, fmt.Sprintf(format, args...), errs.ErrBusy)
	}
	f, err := fsutil.OpenExclusive(path, true)
	if errors.Is(err, errs.ErrBusy) {
		return nil, d, nil, errors.Join(err, usersOf(path))
	}
	if err != nil {
		return nil, d, nil, err
	}
	defer func() {
		if err != nil {
			_ = f.Close()
		}
	}()
	if d, err = fsutil.DescribeDisk(f); err != nil {
		return nil, d, nil, err
	}
	if d.ReadOnly {
		return nil, d, nil, fmt.Errorf("%s is read-only: %w", path, errs.ErrInvalid)
	}
	if err := sectorsFit(d); err != nil {
		return nil, d, nil, err
	}
	users, err := fsutil.Users(d.DevNum)
	if err != nil {
		return nil, d, nil, refuse("could not tell who uses it: %v", err)
	}
	if len(users) > 0 {
		return nil, d, nil, refuse("%s", joinUsers(users))
	}
	parts, err := fsutil.Partitions(d.DevNum)
	if err == nil {
		ranges, err = fsutil.SignatureRanges(f, d.Size)
	}
	if err != nil {
		return nil, d, nil, refuse("could not tell what is on it: %v", err)
	}
	if wipe || len(ranges)+len(parts) == 0 {
		return f, d, ranges, nil
	}
	found, err := fsutil.ProbeReader(f, d.Size)
	what := ""
	for _, s := range found {
		what += ", " + s.String()
	}
	if len(parts) > 0 {
		what += ", partitions " + strings.Join(parts, " ")
	}
	err = errors.Join(refuse("it carries %s", strings.TrimPrefix(what, ", ")), err)
	return nil, d, nil, errs.WithHint(err, "--force wipes it; what is on it is lost")
}

func usersOf(path string) error {
	num, err := fsutil.DevNumOf(path)
	if err != nil {
		return err
	}
	users, err := fsutil.Users(num)
	if err != nil || len(users) == 0 {
		return err
	}
	return errors.New(joinUsers(users))
}

// planGroup looks at the disk on which a volume group is to be made.
func (spec *Spec) planGroup(ctx context.Context, c *lvm.Client, uuid string) (*metadata.LVM, error) {
	path, err := filepath.Abs(spec.Device)
	if err != nil {
		return nil, err
	}
	f, d, _, err := lookAtDisk(path, spec.Force)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	l := &metadata.LVM{MadeVG: true, Device: path, VG: "dmlayer-" + spec.Name}
	_, err = c.VGByName(ctx, l.VG)
	if !errors.Is(err, errs.ErrNotFound) { // taken, twice even, or no name for lvm2
		if err != nil && !errors.Is(err, errs.ErrDamaged) && !errors.Is(err, errs.ErrInvalid) {
			return nil, err
		}
		l.VG = "dmlayer-" + uuid[:12]
	}
	l.DataLV, l.MetadataLV = volumeNames(l.VG, spec.Name, uuid)
	free := max(d.Size-pvHead, 0) / pvExtent * pvExtent
	if err := spec.fit(lvm.VG{Name: l.VG, ExtentSize: pvExtent, Free: free}); err != nil {
		return nil, errs.WithHint(err, fmt.Sprintf("%s has %d bytes", path, d.Size))
	}
	return l, nil
}

// savedDisk tells of a disk what was on it before a create, in the places that a create writes to. The bytes are in a file beside
// this, one range after the other.
type savedDisk struct {
	Path   string         `json:"path"`
	Number string         `json:"number"` // of the device
	Boot   string         `json:"boot"`   // the boot id: numbers and paths mean nothing after a reboot
	Size   int64          `json:"size"`   // bytes
	Ranges []fsutil.Range `json:"ranges"`
}

func (f files) savedDisk() string  { return filepath.Join(f.dir(), "disk.saved") }
func (f files) savedBytes() string { return filepath.Join(f.dir(), "disk.saved.bytes") }

// forgetDisk drops what was saved of a disk, once the create has succeeded.
func (f files) forgetDisk() error { return removeFiles(f.savedDisk(), f.savedBytes()) }

// written are the parts of the disk that a create writes to, beside signatures: lvm2's head, the beginning of the metadata, and the
// first block of the data, which is the label's.
func written(r metadata.Pool) []fsutil.Range {
	const perBitmap = 16000 // blocks that one of the kernel's bitmap blocks tells of, at least
	bitmaps := (r.Backing.DataSize/r.BlockSize + r.Backing.MetadataSize/4096) / perBitmap
	meta := min(2<<20+2*4096*bitmaps, r.Backing.MetadataSize)
	return []fsutil.Range{
		{Offset: 0, Length: pvHead + meta},
		{Offset: pvHead + r.Backing.MetadataSize, Length: r.BlockSize},
	}
}

// saveDisk keeps what a create is going to overwrite.
func (v volumes) saveDisk(f *os.File, d fsutil.Disk, ranges []fsutil.Range) (err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	s := savedDisk{Path: f.Name(), Number: d.String(), Boot: strings.TrimSpace(string(boot)), Size: d.Size}
	for _, r := range fsutil.MergeRanges(append(written(v.p.record), ranges...)) {
		if r.Length = min(r.End(), d.Size) - r.Offset; r.Length > 0 {
			s.Ranges = append(s.Ranges, r)
		}
	}
	to, err := os.OpenFile(v.p.files.savedBytes(), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	for _, r := range s.Ranges {
		if _, err := io.Copy(to, io.NewSectionReader(f, r.Offset, r.Length)); err != nil {
			return err
		}
	}
	if err := to.Sync(); err != nil {
		return err
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if err := writeDurably(v.p.files.savedDisk(), text); err != nil {
		return err
	}
	return pointLVMSaved.Hit()
}

// writeDurably writes a file that is there as a whole or not at all.
func writeDurably(path string, text []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(path+".new"))
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	return fsutil.SyncDir(filepath.Dir(path))
}

// makeGroup makes the volume group on the disk. What was on the disk is kept until the pool has been made.
func (v volumes) makeGroup(ctx context.Context) error {
	l := v.p.record.Backing.LVM
	if err := v.prepareDisk(l.Device); err != nil {
		return err
	}
	err := v.lvm.CreateGroup(ctx, l.VG, l.Device, v.p.record.UUID, v.tag(), pointLVMPV.Hit)
	if err == nil {
		err = pointLVMGroup.Hit()
	}
	return err
}

// prepareDisk looks at the disk once more, saves what is on it, and wipes it.
func (v volumes) prepareDisk(path string) (err error) {
	f, d, ranges, err := lookAtDisk(path, v.p.wipe)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := v.saveDisk(f, d, ranges); err != nil {
		return err
	}
	for _, r := range ranges {
		if err := fsutil.Zero(f, r); err != nil {
			return err
		}
	}
	if len(ranges) == 0 {
		return nil
	}
	if err := errors.Join(f.Sync(), fsutil.RereadPartitions(f)); err != nil {
		return err
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

// removeDisk takes lvm2's label off the disk, if it is there and in no group, and puts back what a create that failed has overwritten.
func (v volumes) removeDisk(ctx context.Context) error {
	pv, err := v.lvm.PVByUUID(ctx, lvm.FormatUUID(v.p.record.UUID))
	switch {
	case errors.Is(err, errs.ErrNotFound):
		pv.Name = ""
	case err != nil:
		return err
	case pv.VG != "":
		return nil
	default:
		if err := v.lvm.RemovePV(ctx, pv); err != nil {
			return err
		}
		if err := pointLVMPVRemoved.Hit(); err != nil {
			return err
		}
	}
	if v.p.record.State == metadata.PoolCreating {
		if err := v.restoreDisk(pv.Name); err != nil {
			return err
		}
	}
	return v.p.files.forgetDisk()
}

// restoreDisk writes back what was saved. path is where the disk was just seen, "" where nothing on it says any more which it is: then
// it has to be the same device since the same boot.
func (v volumes) restoreDisk(path string) (err error) {
	text, err := os.ReadFile(v.p.files.savedDisk())
	if errors.Is(err, os.ErrNotExist) {
		return nil // nothing was written yet
	}
	if err != nil {
		return err
	}
	var s savedDisk
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("%s: %w: %w", v.p.files.savedDisk(), err, errs.ErrDamaged)
	}
	if path == "" {
		boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
		if err != nil {
			return err
		}
		if num, err := fsutil.DevNumOf(s.Path); err != nil || num.String() != s.Number || strings.TrimSpace(string(boot)) != s.Boot {
			v.p.log.Warn("what a create that died has overwritten stays so: nobody can tell which disk it was", "path", s.Path)
			return nil
		}
		path = s.Path
	}
	f, err := fsutil.OpenExclusive(path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err := fsutil.SizeOf(f); err != nil || int64(size) != s.Size {
		return errors.Join(err, fmt.Errorf("%s has %d bytes, not %d: %w", path, size, s.Size, errs.ErrDamaged))
	}
	if err := v.writeBack(f, s.Ranges); err != nil {
		return err
	}
	return errors.Join(f.Sync(), fsutil.RereadPartitions(f))
}

func (v volumes) writeBack(f *os.File, ranges []fsutil.Range) error {
	from, err := os.Open(v.p.files.savedBytes())
	if err != nil {
		return err
	}
	defer from.Close()
	at := int64(0)
	for _, r := range ranges {
		if _, err := io.Copy(io.NewOffsetWriter(f, r.Offset), io.NewSectionReader(from, at, r.Length)); err != nil {
			return err
		}
		at += r.Length
	}
	return nil
}

// sectorsFit is ErrUnsupported where the kernel's thin pools do not work on such sectors.
func sectorsFit(d fsutil.Disk) error {
	if d.SectorSize > 4096 || int64(d.SectorSize)%int64(devmapper.SectorSize) != 0 {
		return fmt.Errorf("%s has sectors of %d bytes: %w", d.Name, d.SectorSize, errs.ErrUnsupported)
	}
	return nil
}
