package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointDisksSaved   = fault.New("pool.create.disks-saved")
	pointDiskHeaders  = fault.New("pool.create.disk-headers")
	pointDisksCleared = fault.New("pool.create.disks-cleared")
)

// takenDisk is a disk that create takes: open exclusively, with nothing on it that it may not take.
type takenDisk struct {
	role, path string
	file       *os.File
	disk       fsutil.Disk
	wipe       []fsutil.Range // the signatures on it
	partitions bool           // the kernel knows partitions of it
}

func (t *takenDisk) part() string { return t.role + " device " + t.path }

// measureDisks fills in the sizes that come from the devices of a device backing. Errors: ErrNotFound, ErrInvalid.
func (spec Spec) measureDisks() (Spec, error) {
	for _, d := range []struct {
		role, path string
		name       *string
		size       *int64
		unit       int64
		least      int64
		most       int64
	}{
		{rawDataRole, spec.DataDevice, &spec.DataDevice, &spec.DataSize, spec.BlockSize, minRawBlocks * spec.BlockSize, maxSize},
		{rawMetaRole, spec.MetadataDevice, &spec.MetadataDevice, &spec.MetadataSize, thinmeta.BlockSize, minMetadataSize, int64(thinpool.MaxMetadataSize)},
	} {
		fail := func(err error) (Spec, error) { return spec, fmt.Errorf("%s device: %w", d.role, err) }
		var err error
		if *d.name, err = filepath.Abs(d.path); err != nil {
			return fail(err)
		}
		if _, err := fsutil.DevNumOf(*d.name); err != nil {
			return fail(err)
		}
		size, err := fsutil.DeviceSize(*d.name)
		if err != nil {
			return fail(err)
		}
		have := max(int64(min(size, maxSize))-headerSpace, 0) / d.unit * d.unit
		if have < d.least {
			return fail(fmt.Errorf("%s is too small: it has %d bytes, and %d are needed: %w", d.path, size, d.least+headerSpace, errs.ErrInvalid))
		}
		*d.size = min(have, d.most)
	}
	return spec, nil
}

// create takes the devices: it saves what it is going to overwrite, writes the headers, and clears the way for the kernel to format the
// metadata. The lock of all disks is held.
func (d *rawDevices) create(ctx context.Context) (err error) {
	taken, err := d.take(ctx)
	defer func() {
		for _, t := range taken {
			err = errors.Join(err, t.file.Close())
		}
	}()
	if err != nil {
		return err
	}
	saves := make([]saving, len(taken))
	for i, t := range taken {
		ranges, err := d.overwritten(t)
		if err != nil {
			return err
		}
		saves[i] = saving{role: t.role, disk: t.file, size: t.disk.Size, ranges: ranges}
	}
	// Where the host has no room for a spare the pool is made all the same, and pool check says so.
	if err := d.files.makeSpare(ctx, d.record.Backing.MetadataSize); err != nil && !errors.Is(err, errs.ErrNoSpace) {
		return err
	}
	if err := saveDisks(ctx, d.files.savedDisks(), saves); err != nil {
		return fmt.Errorf("save what is on the devices: %w", err)
	}
	if err := pointDisksSaved.Hit(); err != nil {
		return err
	}
	for _, t := range taken {
		if err := d.writeHeader(t); err != nil {
			return err
		}
		if err := pointDiskHeaders.Hit(); err != nil {
			return err
		}
	}
	for _, t := range taken {
		if err := d.clear(t); err != nil {
			return err
		}
	}
	return pointDisksCleared.Hit()
}

// writeHeader comes before all else that is written: by it the device is found as one that is to be put back.
func (d *rawDevices) writeHeader(t *takenDisk) error {
	b, err := encodeHeader(diskHeader{UUID: d.record.UUID, Name: d.record.Name, Role: t.role, Created: d.record.Created, Start: headerSpace})
	if err != nil {
		return err
	}
	if err := writeFirst(t.file, b[:headerSector]); err != nil {
		return fmt.Errorf("write the header of %s: %w", t.part(), err)
	}
	return nil
}

// clear makes zeros of the rest of the space for the header, of signatures, and of where the kernel looks for a superblock.
func (d *rawDevices) clear(t *takenDisk) error {
	ranges := append([]fsutil.Range{{Offset: headerSector, Length: headerSpace - headerSector}, {Offset: headerSpace, Length: thinmeta.BlockSize}}, t.wipe...)
	for _, r := range fsutil.MergeRanges(ranges) {
		from := max(r.Offset, headerSector)
		if err := fsutil.Zero(t.file, fsutil.Range{Offset: from, Length: r.End() - from}); err != nil {
			return fmt.Errorf("clear %s: %w", t.part(), err)
		}
	}
	err := fsutil.Flush(t.file)
	if err == nil {
		err = fsutil.DropCache(t.file)
	}
	if err == nil && t.partitions {
		err = fsutil.RereadPartitions(t.file)
	}
	return err
}

// What the kernel and makeLabel write when a pool is made, at most.
const (
	bitmapEntries = 16320 // blocks that one block of a bitmap of the metadata tells of
	formatSlack   = 1024  // blocks of all other trees, through the transactions of a create
)

// overwritten returns all that a create writes to on a disk.
func (d *rawDevices) overwritten(t *takenDisk) ([]fsutil.Range, error) {
	ranges := append([]fsutil.Range{{Length: headerSpace}}, t.wipe...)
	b := d.record.Backing
	var length int64
	if t.role == rawMetaRole {
		bitmaps := b.MetadataSize/thinmeta.BlockSize/bitmapEntries + b.DataSize/d.record.BlockSize/bitmapEntries + 2
		// Each bitmap is written once, and has at most as many blocks of the index above it.
		length = (2*bitmaps + formatSlack) * thinmeta.BlockSize
	} else {
		text, err := encodeLabel(label{UUID: d.record.UUID, Settings: d.record})
		if err != nil {
			return nil, err
		}
		// The first blocks of the data, of which the kernel makes zeros before it writes.
		length = (int64(len(text)) + d.record.BlockSize - 1) / d.record.BlockSize * d.record.BlockSize
	}
	ranges = append(ranges, fsutil.Range{Offset: headerSpace, Length: min(length, t.disk.Size-headerSpace)})
	return fsutil.MergeRanges(ranges), nil
}

// take opens both devices exclusively, or says what speaks against taking them. What it returns is to be closed, also with an
// error.
func (d *rawDevices) take(ctx context.Context) (taken []*takenDisk, err error) {
	b := d.record.Backing
	dataNum, err := fsutil.DevNumOf(b.DataDevice)
	if err != nil {
		return nil, err
	}
	metaNum, err := fsutil.DevNumOf(b.MetadataDevice)
	if err != nil {
		return nil, err
	}
	same, err := fsutil.SameBlocks(dataNum, metaNum)
	if err != nil {
		return nil, err
	}
	if same {
		return nil, fmt.Errorf("%s and %s have the same blocks: data and metadata need a device each: %w", b.DataDevice, b.MetadataDevice, errs.ErrInvalid)
	}
	var refused error
	for _, t := range []*takenDisk{{role: rawDataRole, path: b.DataDevice}, {role: rawMetaRole, path: b.MetadataDevice}} {
		if err := d.takeOne(ctx, t); err != nil {
			refused = errors.Join(refused, err)
		}
		if t.file != nil {
			taken = append(taken, t)
		}
	}
	return taken, refused
}

func (d *rawDevices) takeOne(ctx context.Context, t *takenDisk) error {
	if err := d.suits(t); err != nil {
		return err
	}
	if err := d.claim(t); err != nil {
		return err
	}
	return within(ctx, func() error { return d.blank(t) })
}

// suits tells whether a device can be part of a pool at all.
func (d *rawDevices) suits(t *takenDisk) (err error) {
	f, err := fsutil.OpenDevice(t.path, false)
	if err != nil {
		return err
	}
	defer f.Close()
	if t.disk, err = fsutil.DescribeDisk(f); err != nil {
		return err
	}
	b := d.record.Backing
	need := int64(headerSpace) + b.DataSize
	if t.role == rawMetaRole {
		need = headerSpace + b.MetadataSize
	}
	switch {
	case t.disk.ReadOnly:
		return fmt.Errorf("%s is read-only: %w", t.part(), errs.ErrUnsupported)
	case t.disk.SectorSize > maxDiskSector:
		return fmt.Errorf("%s has sectors of %d bytes, and the kernel's metadata has blocks of %d: %w", t.part(), t.disk.SectorSize, thinmeta.BlockSize, errs.ErrUnsupported)
	case t.disk.Size < need:
		return fmt.Errorf("%s has %d bytes of %d: %w", t.part(), t.disk.Size, need, errs.ErrInvalid)
	case t.role == rawDataRole && d.record.BaseSize%int64(t.disk.SectorSize) != 0:
		return fmt.Errorf("base size %d is no multiple of the %d bytes that a sector of %s has: %w", d.record.BaseSize, t.disk.SectorSize, t.path, errs.ErrInvalid)
	}
	return nil
}

// claim opens the device so that nobody else can use it, unless somebody does.
func (d *rawDevices) claim(t *takenDisk) error {
	users, err := fsutil.Users(t.disk.DevNum)
	if err != nil {
		return fmt.Errorf("%s: it cannot be told who uses it: %w: %w", t.part(), err, errs.ErrBusy)
	}
	if len(users) > 0 {
		err := fmt.Errorf("%s is %s: %w", t.part(), strings.Join(users, ", "), errs.ErrBusy)
		return errs.WithHint(err, "what is in use is never taken, --force or not")
	}
	f, err := openNode(t.path, t.disk.DevNum, true)
	if errors.Is(err, errs.ErrBusy) {
		err := fmt.Errorf("%s: somebody has claimed it, perhaps a mount in another mount namespace: %w", t.part(), err)
		return errs.WithHint(err, "what is in use is never taken, --force or not")
	}
	if err != nil {
		return err
	}
	t.file = f
	return fsutil.DropCache(f)
}

// blank tells whether a device carries anything that would be lost, and what has to be wiped of it. Not being able to tell is
// "in use".
func (d *rawDevices) blank(t *takenDisk) error {
	found, err := fsutil.ProbeReader(t.file, t.disk.Size)
	if err != nil {
		return fmt.Errorf("%s: it cannot be told what is on it: %w: %w", t.part(), err, errs.ErrBusy)
	}
	var what []string
	for _, s := range found {
		text := s.String()
		if h, err := decodeHeader(t.file); s.Type == "dmlayer" && err == nil {
			text = fmt.Sprintf("the %s of pool %q (%s)", h.Role, h.Name, h.UUID)
		}
		what = append(what, text)
	}
	partitions, err := fsutil.Partitions(t.disk.DevNum)
	if err != nil {
		return fmt.Errorf("%s: it cannot be told what is on it: %w: %w", t.part(), err, errs.ErrBusy)
	}
	if t.partitions = len(partitions) > 0; t.partitions {
		what = append(what, "partitions "+strings.Join(partitions, ", "))
	}
	if len(what) > 0 && !d.wipe {
		err := fmt.Errorf("%s carries %s: %w", t.part(), strings.Join(what, ", "), errs.ErrExists)
		return errs.WithHint(err, "--force wipes it; wipefs and blkid tell more about it")
	}
	if t.wipe, err = fsutil.SignatureRanges(t.file, t.disk.Size); err != nil {
		return fmt.Errorf("%s: it cannot be told what is on it: %w: %w", t.part(), err, errs.ErrBusy)
	}
	return nil
}

// within runs fn, which may wait for a device for ever, and waits for it no longer than the context lasts.
func within(ctx context.Context, fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- fn() }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
