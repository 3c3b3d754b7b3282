package pool

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var pointMendAdopted = fault.New("pool.mend.adopted")

// mayAdopt makes a node of an orphan that somebody has a name for. What keeps it from that is an error: he who names a device wants
// to have it.
func (c *checker) mayAdopt(ctx context.Context, f *facts, g Finding) (adopted bool, err error) {
	if g.Code != FoundOrphan || c.o.Adopt == nil {
		return false, nil
	}
	name := c.o.Adopt(g)
	if name == "" {
		return false, nil
	}
	if err := c.adopt(ctx, f, metadata.ThinID(*g.ThinID), name); err != nil {
		return true, fmt.Errorf("adopt thin device %d as %q: %w", *g.ThinID, name, err)
	}
	return true, nil
}

// adopt records an orphan as a snapshot of nothing, which is foreign: nobody knows who has written it. Its id lock is held. What the
// metadata cannot tell, its size, is that of its file system, or as much as is mapped.
func (c *checker) adopt(ctx context.Context, f *facts, id metadata.ThinID, name string) error {
	if err := ValidateNodeName("node", name, nil); err != nil {
		return err
	}
	if !c.running {
		return fmt.Errorf("the pool does not run: %w", errs.ErrBusy)
	}
	if id >= f.record.HighID {
		return errs.WithHint(fmt.Errorf("ids below %d were handed out: the records are of another time: %w", f.record.HighID, errs.ErrDamaged), doImport)
	}
	if _, active := f.devices[id]; active {
		if err := c.mendDevice(id); err != nil { // of a size that may be wrong; one that somebody has open is busy
			return err
		}
	}
	fs, err := c.orphanFS(id)
	if err != nil {
		return err
	}
	end, err := c.mappedEnd(ctx, id)
	if err != nil {
		return err
	}
	if fs.Size > maxSize {
		fs = fsutil.FS{} // no node has as much
	}
	sector := int64(devmapper.SectorSize)
	n := metadata.Node{
		ID: id, Name: name, Kind: metadata.KindSnapshot, Size: max((int64(fs.Size)+sector-1)/sector*sector, end, minBaseSize),
		FS: defaulted(string(fs.Type), f.record.FS), Created: time.Now().UTC(), Foreign: true,
	}
	err = c.Records.Update(ctx, func(tx *metadata.Tx) error {
		if err := c.CheckLocks(); err != nil {
			return err
		}
		_, err := tx.AddNode(n)
		return err
	})
	if err != nil {
		return err
	}
	return pointMendAdopted.Hit()
}

// orphanFS looks which file system is on an orphan, the zero FS for none that a node can have.
func (c *checker) orphanFS(id metadata.ThinID) (found fsutil.FS, err error) {
	if err := c.Mark(id); err != nil {
		return found, err
	}
	info, err := thinpool.Activate(c.p.dm, thinpool.ThinSpec{
		Name: c.p.DeviceName(id), UUID: c.p.DeviceUUID(id), Pool: c.Device, ID: thinpool.ID(id), Size: labelSize / devmapper.SectorSize, ReadOnly: true,
	})
	if err != nil {
		return found, err
	}
	defer func() { err = errors.Join(err, c.p.removeDevice(c.p.DeviceUUID(id))) }()
	path, err := c.p.DeviceNode(info.Dev)
	if err != nil {
		return found, err
	}
	found, err = fsutil.ReadFSOf(path)
	if errors.Is(err, errs.ErrNotFound) || errors.Is(err, errs.ErrDamaged) || errors.Is(err, errs.ErrUnsupported) {
		return fsutil.FS{}, nil
	}
	return found, err
}

// mappedEnd returns the end of the last block that a thin device has, in bytes.
func (c *checker) mappedEnd(ctx context.Context, id metadata.ThinID) (end int64, err error) {
	err = c.thinMetadata(ctx, c.running, func(m *thinmeta.Metadata) error {
		for run, err := range m.Mappings(ctx, uint64(id)) {
			if err != nil {
				return err
			}
			end = int64(run.End()) * c.p.record.BlockSize
		}
		return nil
	})
	return end, err
}
