package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointMendDevice = fault.New("pool.mend.device")
	pointMendOrphan = fault.New("pool.mend.orphan")
	pointMendFiles  = fault.New("pool.mend.files")
	pointMendAside  = fault.New("pool.mend.set-aside")
)

// mend does away with what a finding is about. The id's lock is held, and the finding was made with it. Each can be
// interrupted anywhere: it is found again then.
func (c *checker) mend(ctx context.Context, f *facts, g Finding) error {
	if g.Code == FoundSpareMissing {
		return c.mendSpare(ctx)
	}
	if g.ThinID == nil {
		return fmt.Errorf("it is no thin device's: %w", errs.ErrUnsupported)
	}
	id := metadata.ThinID(*g.ThinID)
	switch g.Code {
	case FoundDeviceSuspended:
		return c.mendSuspended(f.devices[id])
	case FoundDeviceUnused, FoundDeviceOrphan, FoundLayerWritable:
		return c.mendDevice(id)
	case FoundOrphan:
		return c.mendOrphan(id)
	case FoundClaimOrphan:
		return c.removeTree(filepath.Join(c.p.ClaimDir(), strconv.FormatUint(uint64(id), 10)))
	case FoundSideOrphan:
		return c.removeTree(filepath.Join(c.p.BlobDir(), strconv.FormatUint(uint64(id), 10)))
	case FoundLinkOrphan:
		return c.mendLinks(f, id)
	case FoundNodeMissing:
		return c.setAside(ctx, id)
	}
	return fmt.Errorf("%s: %w", g.Code, errs.ErrUnsupported)
}

// Mendable tells whether Check can mend what a finding is about. What is wrong with the metadata is for RepairMetadata.
func (f Finding) Mendable() bool {
	switch f.Code {
	case FoundSpareMissing, FoundRecordsIndex:
		return true
	case FoundDeviceSuspended, FoundDeviceUnused, FoundDeviceOrphan, FoundLayerWritable, FoundOrphan, FoundClaimOrphan, FoundSideOrphan, FoundLinkOrphan:
		return f.ThinID != nil
	case FoundNodeMissing: // of a template
		return f.ThinID != nil && f.Node == ""
	}
	return false
}

// mayReindex makes the indexes of the record store anew, where some are wrong and all of that may be mended, and returns what is wrong then: the records, if they can be
// read, have all that is in indexes.
func (c *checker) mayReindex(ctx context.Context, problems []metadata.Problem) ([]metadata.Problem, error) {
	wrong := false
	for _, p := range problems {
		switch {
		case p.Kind == metadata.ProblemPages || p.Kind == metadata.ProblemRecord:
			return problems, nil
		case p.Kind != metadata.ProblemIndex:
		case c.o.Mend == nil || !c.o.Mend(recordsFinding(p)):
			return problems, nil
		default:
			wrong = true
		}
	}
	if !wrong {
		return problems, nil
	}
	if err := c.Records.Update(ctx, func(tx *metadata.Tx) error { return errors.Join(c.CheckLocks(), tx.Reindex()) }); err != nil {
		return problems, fmt.Errorf("make the indexes anew: %w", err)
	}
	return c.Records.Check(ctx)
}

func (c *checker) mendSpare(ctx context.Context) error {
	if err := c.p.files.makeSpare(ctx, c.metadataSize); err != nil {
		return err
	}
	return pointMendFiles.Hit()
}

// mendSuspended resumes a device, or takes one away that never ran.
func (c *checker) mendSuspended(d deviceFacts) error {
	if !d.Active {
		return c.p.removeDevice(d.UUID)
	}
	if _, err := c.p.dm.Resume(devmapper.ByUUID(d.UUID), devmapper.ResumeOptions{}); err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return err
	}
	return pointMendDevice.Hit()
}

// mendDevice takes a device away that nobody uses; one that somebody has open is ErrBusy.
func (c *checker) mendDevice(id metadata.ThinID) error {
	if err := c.p.removeDevice(c.p.DeviceUUID(id)); err != nil {
		return err
	}
	return pointMendDevice.Hit()
}

// mendOrphan deletes a thin device that no record names.
func (c *checker) mendOrphan(id metadata.ThinID) error {
	if !c.running {
		return fmt.Errorf("the pool does not run: %w", errs.ErrBusy)
	}
	if err := c.mendDevice(id); err != nil {
		return err
	}
	err := c.Thin.Delete(thinpool.ID(id)) // which looks whether the pool could commit that
	if errors.Is(err, thinpool.ErrNoDevice) {
		err = c.committed()
	}
	if err != nil {
		return err
	}
	return pointMendOrphan.Hit()
}

// committed is ErrDamaged where what was done before may not have been committed.
func (c *checker) committed() error {
	st, err := c.Thin.Status()
	if err == nil && !st.Commits() {
		err = c.p.unwritable(st)
	}
	return err
}

func (c *checker) removeTree(path string) error {
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	return pointMendFiles.Hit()
}

// mendLinks removes the links of an id that do not lead to its node's device.
func (c *checker) mendLinks(f *facts, id metadata.ThinID) error {
	for _, l := range f.links {
		if f.linkID(l) == id && (f.names[l.name] != id || l.id != id) {
			if err := removeFiles(filepath.Join(c.p.DeviceDir(), l.name)); err != nil {
				return err
			}
		}
	}
	return pointMendFiles.Hit()
}
