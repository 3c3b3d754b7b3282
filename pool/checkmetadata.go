package pool

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// readMetadata reads which thin devices there are, and has look do more with the same metadata, if it is not nil. Metadata that
// cannot be read is a finding.
func (c *checker) readMetadata(ctx context.Context, f *facts, look func(context.Context, *facts, *thinmeta.Metadata) error) error {
	var inner error
	err := c.thinMetadata(ctx, c.running, func(m *thinmeta.Metadata) error {
		if inner = f.readThins(ctx, m); inner == nil && look != nil {
			inner = look(ctx, f, m)
		}
		return nil
	})
	switch {
	case inner != nil:
		return inner
	case look == nil && (errors.Is(err, errs.ErrNoSpace) || errors.Is(err, errs.ErrDamaged)):
		return nil // the first look has told
	case errors.Is(err, errs.ErrNoSpace):
		c.report.Add(NewFinding(FoundMetadataLow, "pool "+c.p.files.name, "%v", err))
	case ctx.Err() != nil:
		return err
	case err != nil:
		c.report.Add(NewFinding(FoundMetadataUnreadable, c.metadataName, "%v", err))
	}
	if err != nil {
		c.report.Unchecked = append(c.report.Unchecked, "which nodes the pool has: its metadata could not be read")
	}
	return nil
}

// checkMetadata compares the metadata with itself and with the record of the pool.
func (c *checker) checkMetadata(ctx context.Context, f *facts, m *thinmeta.Metadata) error {
	c.o.Progress("metadata of the pool")
	super := m.Superblock()
	if have := int64(super.DataBlockSize) * int64(devmapper.SectorSize); have != f.record.BlockSize {
		c.report.Add(NewFinding(FoundMetadataForeign, c.metadataName, "blocks of %d bytes, the record says %d", have, f.record.BlockSize))
		return nil
	}
	if err := c.checkSizes(ctx, super); err != nil {
		return err
	}
	if !c.running {
		c.checkSuperblock(f.record, super)
	} else if super.Block != 0 {
		c.report.Unchecked = append(c.report.Unchecked, "space maps of the pool, which only a stopped pool's metadata tells")
	}
	report, err := m.Check(ctx)
	if err != nil {
		return err
	}
	c.addReport(report)
	if len(report.Damage) > 0 {
		if err := c.damagedNodes(ctx, f, m); err != nil {
			return err
		}
	}
	return c.checkLabel(ctx, m)
}

// checkSuperblock looks at what the status of a running pool would tell.
func (c *checker) checkSuperblock(r metadata.Pool, super thinmeta.Superblock) {
	if super.NeedsCheck {
		c.report.Add(NewFinding(FoundNeedsCheck, "pool "+c.p.files.name, "the flag is set in %s", c.metadataName))
	}
	c.comparePairing(r, super.TransactionID)
}

// checkSizes tells whether what the pool lies on is as large as the pool is: the records may be ahead of both, where a growth
// was cut short.
func (c *checker) checkSizes(ctx context.Context, super thinmeta.Superblock) (err error) {
	media, err := c.backing.open(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, media.Close()) }()
	for part, err := range media.short(super) {
		c.report.Add(NewFinding(FoundBackingSize, part.name, "%v", err))
	}
	return nil
}

// mostDamage is how much of the damage of one kind is told.
const mostDamage = 20

func (c *checker) addReport(r *thinmeta.Report) {
	object := c.metadataName
	tell := func(code string, errs []error, omitted int) {
		told := min(len(errs), mostDamage)
		for _, err := range errs[:told] {
			c.report.Add(NewFinding(code, object, "%v", err))
		}
		if more := len(errs) - told + omitted; more > 0 {
			c.report.Add(NewFinding(code, object, "and %d more", more))
		}
	}
	omitted := r.Omitted
	if len(r.Damage) == 0 {
		omitted = 0 // of what loses nothing
	}
	tell(FoundMetadataDamaged, r.Damage, omitted)
	tell(FoundMetadataStale, r.Stale, 0)
	leaked := map[thinmeta.Space]bool{}
	for _, l := range r.Leaks {
		if !leaked[l.Space] {
			c.report.Add(NewFinding(FoundMetadataLeak, object, "%d %s blocks are in use for nothing; first: %v", r.Leaked(l.Space), l.Space, l))
		}
		leaked[l.Space] = true
	}
}

// damagedNodes says which nodes lose something with what is damaged.
func (c *checker) damagedNodes(ctx context.Context, f *facts, m *thinmeta.Metadata) error {
	usage, err := m.Usage(ctx)
	if err != nil {
		return err
	}
	for _, d := range usage.Devices {
		if d.Err != nil {
			c.report.Add(f.about(metadata.ThinID(d.ID), FoundNodeDamaged, "%d blocks can be read; %v", d.Mapped, d.Err))
		}
	}
	if f.thinsSomeOf {
		for id := range f.nodes {
			if _, known := f.thins[id]; !known {
				c.report.Add(f.about(id, FoundNodeDamaged, "the pool's list of devices is damaged, and it is not in what is left of it"))
			}
		}
	}
	return nil
}

// checkLabel looks whether data and metadata are this pool's.
func (c *checker) checkLabel(ctx context.Context, m *thinmeta.Metadata) error {
	err := c.readLabel(ctx, m)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	switch object := fmt.Sprintf("thin device %d", labelID); {
	case errors.Is(err, errLabelLost):
		c.report.Add(NewFinding(FoundLabelLost, object, "%v", err))
	case err != nil:
		c.report.Add(NewFinding(FoundLabel, object, "%v", err))
	}
	return nil
}

// errLabelLost says that metadata does not tell any more where the label lies, which says nothing against the data.
var errLabelLost = fmt.Errorf("the metadata has lost the label: %w", errs.ErrDamaged)

// labelReader reads as much of thin device 0 as is left, where that is its beginning at least.
func labelReader(ctx context.Context, m *thinmeta.Metadata, data io.ReaderAt) (*thinReader, error) {
	r := &thinReader{data: data, block: int64(m.Superblock().DataBlockSize) * int64(devmapper.SectorSize)}
	var lost error
	for run, err := range m.Mappings(ctx, labelID) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err == nil {
			r.runs = append(r.runs, run)
		}
		lost = errors.Join(lost, err)
	}
	if len(r.runs) > 0 && r.runs[0].Begin == 0 {
		return r, nil
	}
	if lost == nil {
		return nil, errLabelLost
	}
	return nil, fmt.Errorf("%w: %w", errLabelLost, lost)
}

// readLabel reads the label from the data file, and tells whether it is this pool's.
func (s *Session) readLabel(ctx context.Context, m *thinmeta.Metadata) error {
	media, err := s.openMedia(ctx)
	if err != nil {
		return err
	}
	defer media.Close()
	thin, err := labelReader(ctx, m, media.data)
	if err != nil {
		return err
	}
	l, err := decodeLabel(io.NewSectionReader(thin, 0, labelSize))
	if err == nil && l.UUID != s.p.record.UUID {
		err = fmt.Errorf("the data belongs to pool %s", l.UUID)
	}
	return err
}
