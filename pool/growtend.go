package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// ErrChanged says that the pool of this name is not the one that was opened any more, or is being destroyed.
var ErrChanged = fmt.Errorf("the pool was destroyed, or made anew: %w", errs.ErrNotFound)

// Tended is what Tender.Look has found and done.
type Tended struct {
	// Running says that the pool runs. Where it does not, the rest means nothing.
	Running bool
	State   string // as in Status
	Space   Space
	// What the pool has now, in bytes.
	DataUsed, DataTotal, MetadataUsed, MetadataTotal int64
	// Before and After are the sizes of the backing where it has grown, else the same.
	Before, After Sizes
	// Stuck says why what should have grown could not. nil is that nothing should, or that it did.
	Stuck error
}

// DataPercent and MetadataPercent are the parts in use, in whole percent.
func (t Tended) DataPercent() int { return percent(uint64(t.DataUsed), uint64(t.DataTotal)) }
func (t Tended) MetadataPercent() int {
	return percent(uint64(t.MetadataUsed), uint64(t.MetadataTotal))
}

// Tender makes a pool larger before it is full, for as long as somebody calls it: whenever an event of device-mapper says that the pool
// runs low, and now and then. It is for one goroutine of the process that serves the pool (see Serve).
type Tender struct {
	p     *Pool
	dev   devmapper.DevNum
	event uint32
	space Space
	stuck error
	seen  bool
}

// Tender returns a new one.
func (p *Pool) Tender() *Tender { return &Tender{p: p} }

// Look looks whether the pool runs low, and makes it larger by its settings, metadata first. It never starts a pool. all asks for a look at
// everything: also at devices that have become larger, and at room that has come. Without it a pool that has raised no event since the last
// look costs a look at its status and its record. Writers that find the pool full wait as long as it could be made larger, else they
// fail. ErrChanged: there is no such pool any more.
func (t *Tender) Look(ctx context.Context, all bool) (Tended, error) {
	p := t.p
	s, err := p.Hold(ctx)
	if err != nil {
		return Tended{}, err
	}
	defer s.Exit()
	record, err := s.current(ctx)
	if err != nil {
		return Tended{}, err
	}
	err = s.look()
	if errors.Is(err, devmapper.ErrNotFound) {
		t.seen = false
		return Tended{}, nil
	}
	if err != nil {
		return Tended{}, fmt.Errorf("watch pool %q: %w", p.files.name, kernelError(err))
	}
	f := &figures{record: record, status: s.Status}
	result := Tended{Stuck: t.stuck}
	// The number is that of before the look: an event that comes while it lasts has not been looked at.
	raised := t.seen && t.dev == s.Device && t.event != s.event
	if all || raised || !t.seen || t.dev != s.Device || t.space != record.Space || s.suspended {
		result, f, err = s.tend(ctx, raised)
		if err != nil {
			return result, fmt.Errorf("watch pool %q: %w", p.files.name, kernelError(err))
		}
		t.seen, t.dev, t.event, t.space, t.stuck = true, s.Device, s.event, f.record.Space, result.Stuck
	}
	result.describe(s.p.record.BlockSize, f)
	return result, nil
}

// describe fills in what a look has found.
func (t *Tended) describe(block int64, f *figures) {
	st := f.status
	t.Running, t.State, t.Space = true, stateOf(st), f.record.Space
	t.DataUsed, t.DataTotal = int64(st.UsedData)*block, int64(st.TotalData)*block
	t.MetadataUsed, t.MetadataTotal = int64(st.UsedMetadata)*thinpool.MetadataBlockSize, int64(st.TotalMetadata)*thinpool.MetadataBlockSize
}

// current returns the pool's record, if it still is the pool that was opened.
func (s *Session) current(ctx context.Context) (record metadata.Pool, err error) {
	err = s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		record, err = tx.Pool()
		return err
	})
	if errors.Is(err, errs.ErrNotFound) || err == nil && (record.UUID != s.p.record.UUID || record.State != metadata.PoolReady) {
		err = ErrChanged
	}
	if err != nil {
		return record, fmt.Errorf("pool %q: %w", s.p.files.name, err)
	}
	return record, nil
}

// tend is a look at everything. raised says that the pool has raised an event since the last one.
func (s *Session) tend(ctx context.Context, raised bool) (t Tended, found *figures, err error) {
	if err := s.p.growable(s.Status); err != nil {
		record, rerr := s.current(ctx)
		return Tended{Stuck: err}, &figures{record: record, status: s.Status}, rerr
	}
	err = s.withFigures(ctx, func(b backing, f *figures) error {
		found = f
		t.Before = Sizes{Data: f.record.Backing.DataSize, Metadata: f.record.Backing.MetadataSize}
		if f.room.DataSize > t.Before.Data || f.room.MetadataSize > t.Before.Metadata { // by somebody else
			if err := s.recordDevices(ctx, f); err != nil {
				return err
			}
		}
		n, err := s.growAsNeeded(ctx, b, f)
		if err != nil {
			return err
		}
		t.Stuck = n.stuck()
		t.After = Sizes{Data: f.room.DataSize, Metadata: f.room.MetadataSize}
		growing := n.dataStuck == nil && s.canGrow(f)
		used := percent(f.status.UsedData, f.status.TotalData)
		w := wish{full: fullFails, event: nextEvent(used, f.record.Space.GrowAt, growing)}
		if growing {
			w.full = fullWaits
		}
		// An event that was raised and has passed would not be raised again.
		w.again = raised && t.After == t.Before && f.status.Mode == thinpool.ModeReadWrite && f.status.FreeMetadata() > f.status.MetadataLowWater
		return s.refit(f, w)
	})
	return t, found, err
}

// growAsNeeded grows until there is enough, or no more to be had: the metadata first, as both may live off the same room, and without it
// nothing can be written. A growth that fails is as good as none.
func (s *Session) growAsNeeded(ctx context.Context, b backing, f *figures) (need, error) {
	var stuck need
	for {
		n := s.planGrowth(f)
		if stuck.metadataStuck != nil {
			n.metadata, n.metadataStuck = 0, stuck.metadataStuck
		}
		if n.data == 0 && n.metadata == 0 {
			return n, nil
		}
		data := n.data
		if n.metadata > 0 {
			data = 0
		}
		before := f.room
		err := s.growTo(ctx, b, f, data, n.metadata)
		if ctx.Err() != nil {
			return n, err
		}
		if err == nil && f.room.DataSize <= before.DataSize && f.room.MetadataSize <= before.MetadataSize {
			err = fmt.Errorf("the backing has not become larger: %w", errs.ErrNoSpace)
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("pool %q does not grow: %w", s.p.files.name, kernelError(err))
		if n.metadata > 0 {
			stuck.metadataStuck = err
			continue
		}
		n.dataStuck = err
		return n, nil
	}
}

// Rest has writers fail again that find the pool full: nobody makes it larger any more. A pool that does not run rests.
func (t *Tender) Rest(ctx context.Context) error {
	s, err := t.p.Hold(ctx)
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.look(); err != nil || s.Status.ErrorIfNoSpace {
		if errors.Is(err, devmapper.ErrNotFound) {
			err = nil
		}
		return kernelError(err)
	}
	err = s.withFigures(ctx, func(_ backing, f *figures) error { return s.refit(f, wish{full: fullFails}) })
	return kernelError(err)
}
