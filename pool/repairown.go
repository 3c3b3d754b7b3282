package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// write has the metadata checked, and fills the spare: with a copy of sound metadata, less the kernel's mark that asks for a
// check, or with what can be saved. That keeps shared what nodes share, so that it fits; thin_repair gives each node its own, and
// sees no device without its details. It gets what thinmeta finds no device in.
func (r *repairer) write(ctx context.Context, old, spare string) error {
	r.o.Progress("thin_check of the metadata")
	sound, said, err := thinCheck(ctx, old)
	if err != nil {
		return err
	}
	whole, leaks := r.agrees(ctx, r.input)
	r.report.Said, r.report.Sound = said, sound && whole
	if err := copyMetadata(old, spare); err != nil {
		return err
	}
	if r.report.Sound && !leaks {
		return rewrite(spare, thinmeta.ClearNeedsCheck)
	}
	r.o.Progress("repair of a copy in the spare")
	err = rewrite(spare, func(f thinmeta.Storage) error {
		if err := r.p.restoreSuperblock(f); err != nil {
			return err
		}
		return r.mend(ctx, f)
	})
	switch {
	case noDevices(err):
		r.o.Progress("thin_repair into the spare")
		return r.thinRepair(ctx, old, spare)
	case err != nil:
		return err
	}
	if sound, said, err = thinCheck(ctx, spare); err == nil && !sound {
		err = fmt.Errorf("thin_check finds the repaired metadata unsound: %s: %w", said, errs.ErrDamaged)
	}
	return err
}

// noDevices tells whether metadata does not lead to any thin device.
func noDevices(err error) bool {
	return errors.Is(err, thinmeta.ErrBlank) || errors.Is(err, thinmeta.ErrNotThin) || errors.Is(err, thinmeta.ErrChecksum) || errors.Is(err, thinmeta.ErrDamaged)
}

// rewrite changes metadata for good.
func rewrite(path string, change func(thinmeta.Storage) error) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	err = change(f)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// mend repairs the copy, and keeps what became of each thin device.
func (r *repairer) mend(ctx context.Context, f thinmeta.Storage) error {
	size, err := fsutil.SizeOf(f.(*os.File))
	if err != nil {
		return err
	}
	repaired, err := thinmeta.Repair(ctx, f, thinmeta.RepairOptions{
		DataBlocks: uint64(r.media.data.size / r.p.record.BlockSize), MetadataBlocks: size / thinmeta.BlockSize, MoreMetadata: r.all,
		Made: map[uint64]uint64{labelID: r.labelMade(ctx)},
	})
	if err != nil {
		return err
	}
	r.devices = map[metadata.ThinID]thinmeta.RepairedDevice{}
	for _, d := range repaired.Devices {
		r.devices[metadata.ThinID(d.ID)] = d
	}
	return nil
}

// labelMade is the transaction in which the label's device was made, which tells the pool's present life: where the details of
// the devices are lost, label and records have it.
func (r *repairer) labelMade(ctx context.Context) uint64 {
	made := r.p.record.Renewed
	f, err := os.Open(r.input)
	if err != nil {
		return made
	}
	defer f.Close()
	m, err := thinmeta.Open(f, thinmeta.Options{})
	if err != nil {
		return made
	}
	thin, err := labelReader(ctx, m, r.media.data)
	if err != nil {
		return made
	}
	if l, err := decodeLabel(io.NewSectionReader(thin, 0, labelSize)); err == nil && l.Settings.Renewed == made {
		return l.Settings.TransactionID
	}
	return made
}

// thinRepair has thin_repair write what it can save into the spare.
func (r *repairer) thinRepair(ctx context.Context, old, spare string) error {
	err := run.Run(ctx, "thin_repair", append(r.overrides(), "-i", old, "-o", spare)...)
	if failed := (*run.Error)(nil); errors.As(err, &failed) && ctx.Err() == nil {
		return errs.WithHint(fmt.Errorf("the metadata cannot be repaired: %w: %w", err, errs.ErrDamaged),
			"put a copy of the metadata back that is as new as the records; "+r.metadataName()+" is as it was")
	}
	if err != nil {
		return err
	}
	return rewrite(spare, func(f thinmeta.Storage) error { // it does not know the pool's time where the superblock is lost
		_, err := thinmeta.Repair(ctx, f, thinmeta.RepairOptions{})
		if noDevices(err) { // nor has it found any
			err = thinmeta.ClearNeedsCheck(f)
		}
		return err
	})
}
