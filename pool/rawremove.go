package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointDiskRestored = fault.New("pool.create.disk-restored")
	pointDiskCleared  = fault.New("pool.destroy.disk-cleared")
)

// remove puts back what a create that did not come to its end has overwritten, or takes down the devices of a pool. It can be
// repeated from any point: what is done has no header of the pool any more, and is recorded.
func (d *rawDevices) remove(ctx context.Context) error {
	undo := d.record.State == metadata.PoolCreating
	saved := map[string]*formerDisk{}
	if undo {
		var err error
		saved, err = readSaved(d.files.savedDisks())
		if errors.Is(err, os.ErrNotExist) {
			// Nothing has been written to any disk.
			return removeFiles(d.files.savedDisks()+".new", d.files.spare())
		}
		if err != nil {
			return err
		}
	}
	s, err := d.search(ctx)
	if err != nil {
		return err
	}
	for _, role := range []string{rawMetaRole, rawDataRole} {
		if err := d.giveBack(ctx, s, role, saved[role]); err != nil {
			return fmt.Errorf("give back the %s device: %w", role, err)
		}
	}
	return removeFiles(append(d.files.besideMetadata(), d.files.repaired(), d.files.savedDisks()+".new", d.files.savedDisks())...)
}

// present looks whether the disks are there that a destroy is going to clear: one that has begun must come to its end.
func (p *Pool) present(ctx context.Context) error {
	b, err := p.backing()
	if err != nil {
		return err
	}
	if v, ok := b.(volumes); ok {
		return v.present(ctx)
	}
	d, ok := b.(*rawDevices)
	if !ok {
		return nil
	}
	pair, err := d.either(ctx, false)
	if none := (*missingError)(nil); errors.As(err, &none) {
		return d.gone(err, errs.ErrDamaged)
	}
	if err != nil {
		return err
	}
	return pair.Close()
}

// gone says what to do where a disk does not come back.
func (d *rawDevices) gone(err, class error) error {
	return errs.WithHint(fmt.Errorf("%w: %w", err, class), "attach the disk; if it is gone for good, remove "+d.files.dir()+" by hand")
}

// giveBack makes one of the devices what it was, or what it was not with no saved one.
func (d *rawDevices) giveBack(ctx context.Context, s search, role string, saved *formerDisk) error {
	seen, err := d.one(s, role)
	if none := (*missingError)(nil); errors.As(err, &none) {
		if done, lerr := d.givenBack(ctx, s, role, saved); done || lerr != nil {
			return lerr
		}
		return d.gone(err, errs.ErrDamaged)
	}
	if err != nil {
		return err
	}
	disk, err := d.openDisk(seen, true)
	defer func() {
		if disk.file != nil {
			_ = disk.file.Close()
		}
	}()
	if err != nil {
		return err
	}
	first := make([]byte, headerSector)
	if saved != nil {
		first, err = putBack(ctx, d.files.savedDisks(), role, disk.file, 0)
	} else {
		err = clearDisk(disk)
	}
	if err == nil {
		err = d.files.note(ctx, func(b *metadata.Backing) { b.GivenBack = append(b.GivenBack, role) })
	}
	if err == nil {
		err = writeLast(disk.file, first, 0)
	}
	if err == nil {
		err = fsutil.DropCache(disk.file)
	}
	// A disk that cannot have its partitions read again has them read when it is attached the next time.
	_ = fsutil.RereadPartitions(disk.file)
	if err != nil {
		return err
	}
	if saved != nil {
		return pointDiskRestored.Hit()
	}
	return pointDiskCleared.Hit()
}

// givenBack tells whether a disk without a header is what it is to be: it was put back or cleared before, or a create that died has not come to
// it. Then one of its size still has all that was saved of it.
func (d *rawDevices) givenBack(ctx context.Context, s search, role string, saved *formerDisk) (bool, error) {
	if slices.Contains(d.record.Backing.GivenBack, role) {
		return true, nil
	}
	if saved == nil {
		return false, nil
	}
	for _, o := range s.others {
		if o.disk.node.Size != saved.size || !bytes.HasPrefix(o.first, saved.first) {
			continue
		}
		if same, err := d.asSaved(ctx, o.disk, role); same || err != nil {
			return same, err
		}
	}
	return false, nil
}

func (d *rawDevices) asSaved(ctx context.Context, disk seenDisk, role string) (bool, error) {
	f, err := openNode(disk.path, disk.node.DevNum, false)
	if err != nil {
		return false, nil // it has gone
	}
	defer f.Close()
	if err := fsutil.DropCache(f); err != nil {
		return false, err
	}
	same, _, err := isSaved(ctx, d.files.savedDisks(), role, f, func(int64, []byte) bool { return false })
	return same, err
}

// note changes what the record says of the backing of a pool that is being destroyed, or was being made: the start/stop lock is held exclusively.
func (f files) note(ctx context.Context, change func(*metadata.Backing)) error {
	store := metadata.New(f.store(), unlocked{})
	defer store.Close()
	return store.Update(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		if err != nil {
			return err
		}
		change(&r.Backing)
		return tx.PutPool(r)
	})
}

// clearDisk leaves nothing on a disk, behind its header, by which it is taken for something: no superblock, no signature of what nodes hold.
func clearDisk(disk rawDisk) error {
	ranges := []fsutil.Range{{Offset: headerSector, Length: headerSpace - headerSector}, {Offset: headerSpace, Length: thinmeta.BlockSize}}
	// Of a disk that cannot be read everywhere the header goes, and what can be found.
	if more, err := fsutil.SignatureRanges(disk.file, disk.size); err == nil {
		ranges = append(ranges, more...)
	}
	for _, r := range fsutil.MergeRanges(ranges) {
		from := max(r.Offset, headerSector)
		if err := fsutil.Zero(disk.file, fsutil.Range{Offset: from, Length: r.End() - from}); err != nil {
			return fmt.Errorf("clear %s: %w", disk.path, err)
		}
	}
	return nil
}
