package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool"
)

// wish says what a pool's table should be besides as large as its devices; the zero value leaves it as it is.
type wish struct {
	// full is what happens to writes that find no block.
	full whenFull
	// event is how much of the data is in use when the kernel next raises an event, in percent; 0 leaves it.
	event int
	// again reloads a table that is right already: the kernel raises the event for running low once for each resume.
	again bool
}

type whenFull uint8

const (
	fullKept  whenFull = iota
	fullFails          // writes fail at once
	fullWaits          // for at most as long as the kernel lets them, a minute: somebody is about to make the pool larger
)

// refit gives the pool's linear devices and then the pool the tables that they should have: as large as the devices below them, less
// what is held of the metadata, never smaller than the pool is. A pool that was left suspended runs afterwards. What is right
// already is not touched. The grow lock is held.
func (s *Session) refit(f *figures, w wish) error {
	grown, err := s.extendLinear(f)
	if err != nil {
		return err
	}
	live, length, err := s.Thin.Table()
	if err != nil {
		return err
	}
	block := s.p.record.BlockSize
	blocks := uint64(f.room.DataSize / block)
	if blocks < f.status.TotalData {
		err := fmt.Errorf("the data has %s, the pool needs %s: %w", inMiB(f.room.DataSize), inMiB(int64(f.status.TotalData)*block), errs.ErrDamaged)
		return errs.WithHint(err, "its backing was made smaller: what lay behind its end is lost")
	}
	want := live
	switch w.full {
	case fullFails:
		want.ErrorIfNoSpace = true
	case fullWaits:
		want.ErrorIfNoSpace = false
	}
	switch {
	case w.event > 0:
		want.LowWater = lowWater(blocks, w.event)
	case blocks != f.status.TotalData:
		want.LowWater = lowWater(blocks, defaulted(f.record.Space.GrowAt, defaultGrowAt))
	}
	wantLength := devmapper.SectorsOf(blocks * uint64(block))
	if want == live && wantLength == length && !grown && !f.info.Suspended && !w.again {
		return nil
	}
	if f.info.Suspended {
		s.p.log.Warn("a dead process had left the pool suspended", "pool", s.p.files.name)
	}
	if _, err := thinpool.ReloadPool(s.p.dm, s.Thin.Ref(), wantLength, want); err != nil {
		return err
	}
	if err := pointGrowTable.Hit(); err != nil {
		return err
	}
	if f.status, f.info, err = s.Thin.StatusInfo(); err != nil {
		return err
	}
	s.Status = f.status
	if f.status.TotalData < blocks { // it says so in its log only
		return fmt.Errorf("the kernel has not taken the larger table: %w", s.p.unwritable(f.status))
	}
	return nil
}

// lowWater is how many of a pool's blocks are free when that much of it is in use, in percent.
func lowWater(blocks uint64, percent int) uint64 {
	return blocks/100*uint64(100-percent) + blocks%100*uint64(100-percent)/100
}

// extendLinear makes the linear devices as large as what is below them, and tells whether the pool has yet to learn of it: it
// looks how large its metadata is when it gets a table.
func (s *Session) extendLinear(f *figures) (grown bool, err error) {
	meta := f.metadataBlocks()
	grown = meta > int64(f.status.TotalMetadata)
	for _, part := range []struct {
		suffix string
		size   int64
	}{{suffixMetadata, meta * thinpool.MetadataBlockSize}, {suffixData, f.room.DataSize}} {
		larger, err := s.p.extendOne(deviceUUID(s.p.record.UUID, part.suffix), part.size)
		if err != nil {
			return false, err
		}
		if larger {
			grown = true
			if err := pointGrowLinear.Hit(); err != nil {
				return true, err
			}
		}
	}
	return grown, nil
}

// extendOne makes a linear device larger, in bytes; one that is not there, or as large, stays as it is.
func (p *Pool) extendOne(uuid devmapper.UUID, size int64) (bool, error) {
	ref := devmapper.ByUUID(uuid)
	live, err := p.dm.Table(ref)
	if errors.Is(err, devmapper.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if len(live) != 1 || live[0].Type != "linear" {
		return false, fmt.Errorf("device %s: not the linear device that dmlayer made: %w", uuid, errs.ErrDamaged)
	}
	want := live[0]
	want.Length = devmapper.SectorsOf(uint64(size &^ (thinpool.MetadataBlockSize - 1)))
	if want.Length <= live[0].Length {
		return false, nil
	}
	if err := p.dm.Load(ref, devmapper.LoadOptions{}, want); err != nil {
		return false, err
	}
	if _, err := p.dm.Resume(ref, devmapper.ResumeOptions{}); err != nil {
		return false, errors.Join(err, p.dm.Clear(ref))
	}
	return true, nil
}

// wake brings a pool back to work that somebody left suspended who died while he changed its tables.
func (s *Session) wake(ctx context.Context) error {
	return s.withFigures(ctx, func(backing, *figures) error { return nil })
}

// settleFull has writes fail again that find a pool full, where nobody is there any more who could make it larger.
func (s *Session) settleFull(ctx context.Context) error {
	if s.Status.ErrorIfNoSpace || s.Status.Mode == thinpool.ModeFail || s.Status.Mode == thinpool.ModeError {
		return nil
	}
	served, err := s.holder.Held(at(offsetServe))
	if served || err != nil {
		return err
	}
	return s.withFigures(ctx, func(_ backing, f *figures) error {
		served, err := s.holder.Held(at(offsetServe))
		if served || err != nil {
			return err
		}
		return s.refit(f, wish{full: fullFails})
	})
}
