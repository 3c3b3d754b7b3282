package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointStartAttached  = fault.New("pool.start.attached")
	pointStartMetadata  = fault.New("pool.start.metadata")
	pointStartActivated = fault.New("pool.start.activated")
	pointStartPaired    = fault.New("pool.start.paired")
	pointStopDevices    = fault.New("pool.stop.devices")
	pointStopPool       = fault.New("pool.stop.pool")
)

// Start makes a pool run. One that runs is no error.
func Start(ctx context.Context, dirs Dirs, name string) error {
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := p.Enter(ctx)
	if err != nil {
		return err
	}
	s.Exit()
	return nil
}

// start activates the pool and pairs it with the store. The start/stop lock is held exclusively and
// the pool does not run.
func (s *Session) start(ctx context.Context) (err error) {
	p := s.p
	defer func() {
		if err != nil {
			err = fmt.Errorf("start pool %q: %w", p.files.name, kernelError(err))
		}
	}()
	record, err := s.stillThere(ctx)
	if err != nil {
		return err
	}
	b, err := p.backing()
	if err != nil {
		return err
	}
	if err := s.deactivateAll(ctx); err != nil { // what a start left that died
		return err
	}
	if err := s.finishPrepared(ctx, b); err != nil {
		return err
	}
	if err := s.settleLosses(ctx, b); err != nil {
		return err
	}
	if err := p.markStarting(); err != nil {
		return err
	}
	if err = s.activate(ctx, b, record); err == nil {
		err = s.meet(ctx)
	}
	if errors.Is(err, errUnreadableLabel) {
		p.log.Warn("the pool's label cannot be read: the pool is started read-only", "pool", p.files.name, "error", err)
		if err = s.deactivateAll(ctx); err == nil {
			err = s.activateFor(ctx, b, record, true)
		}
		if err == nil {
			err = s.meet(ctx)
		}
	}
	if err == nil {
		return p.unmarkStarting()
	}
	undo, cancel := UndoContext(ctx)
	defer cancel()
	err = errors.Join(err, s.deactivateAll(undo), b.detached(undo))
	return errors.Join(err, p.unmarkStarting())
}

// stillThere looks whether the pool was destroyed, and perhaps made anew, since it was opened, and returns its record of now.
func (s *Session) stillThere(ctx context.Context) (now metadata.Pool, err error) {
	err = s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		now, err = tx.Pool()
		return err
	})
	if err == nil && now.State != metadata.PoolReady {
		err = errs.ErrNotFound
	}
	if err == nil && now.UUID != s.p.record.UUID {
		err = fmt.Errorf("it was destroyed and made anew: %w", errs.ErrNotFound)
	}
	return now, s.p.notFound(err)
}

// startMark is there from before the pool is activated until it has been found to be the right one.
// Where it is and nobody holds the start/stop lock exclusively, a start died in between: what runs has
// not been checked and must not be used.
func (p *Pool) startMark() string { return filepath.Join(p.StateDir(), "starting") }

func (p *Pool) markStarting() error {
	if err := makeDirs(p.StateDir()); err != nil {
		return err
	}
	return os.WriteFile(p.startMark(), nil, 0o600)
}

func (p *Pool) unmarkStarting() error { return removeFiles(p.startMark()) }

func (p *Pool) startDied() bool {
	_, err := os.Lstat(p.startMark())
	return err == nil
}

// meet checks that the pool that was just activated is ours, and marks the start. One that takes no messages keeps the marks that it has.
func (s *Session) meet(ctx context.Context) error {
	if err := pointStartActivated.Hit(); err != nil {
		return err
	}
	return s.withPoolLock(ctx, func() error {
		writable := s.Status.Commits()
		record, err := s.pairLocked(ctx)
		if err != nil && (writable || !errors.Is(err, errLater)) {
			return err
		}
		if err := pointStartPaired.Hit(); err != nil {
			return err
		}
		// Of a pool that is damaged the transaction id, a random number, must do where the label is hit.
		if err := s.foundLabel(); err != nil && (writable || !errors.Is(err, errUnreadableLabel)) {
			return err
		}
		if !writable {
			return nil
		}
		// Of the superblock alone: the record that was read when the pool was opened may be of an earlier life.
		taken, err := s.p.snapshotsTaken(metadata.Pool{})
		if err == nil && taken > snapshotLimit { // by messages of others: what is left of the window must not be handed out
			err = s.writeCursor(cursor{next: record.HighID, high: record.HighID})
		}
		if err != nil {
			return err
		}
		return s.bump(ctx, func(r *metadata.Pool) {
			r.SnapshotsTaken = max(r.SnapshotsTaken, taken)
			s.notePlaces(r)
		})
	})
}

// activate brings the pool's devices up from its backing, as large as they are now. Of a pool that should exist the superblock
// is looked at first: the kernel would format a blank one. A pool that needs a check is only read.
func (s *Session) activate(ctx context.Context, b backing, record metadata.Pool) error {
	return s.activateFor(ctx, b, record, false)
}

// activateFor is activate, where readOnly for reading alone: the kernel takes no messages then, and no write that needs a block.
func (s *Session) activateFor(ctx context.Context, b backing, record metadata.Pool, readOnly bool) error {
	p := s.p
	if err := makeDirs(p.StateDir()); err != nil {
		return err
	}
	a, err := b.attach(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = a.close() }() // from here on the tables hold the devices
	if err := pointStartAttached.Hit(); err != nil {
		return err
	}
	held := record.Backing.MetadataHeld
	if record.State != metadata.PoolCreating {
		sb, err := p.checkSuperblock(a.metadataPath, a.metadataStart)
		if err != nil {
			return err
		}
		readOnly = readOnly || sb.NeedsCheck
		held = heldWithin(held, a.metadataSize, sb) // a growth that died may have recorded that more is held
	}
	stays, err := p.unkeepSuperblock()
	if err != nil {
		return err
	}
	readOnly = readOnly || stays
	meta, data, err := p.activateLinear(a, held)
	if err != nil {
		return err
	}
	table := p.table(record, meta, data, a.dataSize)
	table.ReadOnly = readOnly
	length := devmapper.SectorsOf(uint64(a.dataSize / p.record.BlockSize * p.record.BlockSize))
	if err := pointStartMetadata.Hit(); err != nil {
		return errors.Join(err, p.removeLinear())
	}
	uuid := deviceUUID(p.record.UUID, suffixPool)
	info, err := thinpool.ActivatePool(p.dm, deviceName(p.record.UUID, suffixPool), uuid, length, table)
	if err != nil {
		return errors.Join(err, p.removeLinear())
	}
	s.dataName, s.metadataName = a.dataName, a.metadataName
	s.Device = info.Dev
	s.Thin = thinpool.NewPool(p.dm, devmapper.ByUUID(uuid))
	if s.Status, err = s.Thin.Status(); err != nil {
		return err
	}
	return nil
}

func (p *Pool) table(record metadata.Pool, meta, data devmapper.DevNum, dataSize int64) thinpool.PoolTable {
	return thinpool.PoolTable{
		Metadata: meta, Data: data,
		BlockSize:         devmapper.SectorsOf(uint64(p.record.BlockSize)),
		LowWater:          lowWater(uint64(dataSize/p.record.BlockSize), defaulted(record.Space.GrowAt, defaultGrowAt)),
		SkipBlockZeroing:  p.record.NoZero,
		IgnoreDiscard:     p.record.Discard == "ignore",
		NoDiscardPassdown: p.record.Discard == "nopassdown",
		ErrorIfNoSpace:    true, // unless somebody is there who makes the pool larger, a full one gives errors, never a hang
	}
}

// checkSuperblock refuses to activate what is no thin pool, or another one.
func (p *Pool) checkSuperblock(path string, start int64) (sb thinmeta.Superblock, err error) {
	f, err := os.Open(path)
	if err != nil {
		return sb, err
	}
	defer f.Close()
	sb, err = thinmeta.ReadSuperblock(io.NewSectionReader(f, start, thinmeta.BlockSize))
	if err != nil {
		return sb, errs.WithHint(fmt.Errorf("metadata of pool %q: %w: %w", p.files.name, err, errs.ErrDamaged),
			"dmlayer pool check "+p.files.name+" says more, and with --repair has it repaired. Nothing was changed")
	}
	if got := int64(sb.DataBlockSize) * int64(devmapper.SectorSize); got != p.record.BlockSize {
		return sb, p.mispaired("blocks of %d bytes, the record says %d", got, p.record.BlockSize)
	}
	return sb, nil
}

// snapshotsTaken returns the pool's count of create_snap messages from the live superblock, which
// the kernel writes at each commit and never gives otherwise.
func (p *Pool) snapshotsTaken(r metadata.Pool) (uint64, error) {
	info, err := p.dm.Info(devmapper.ByUUID(deviceUUID(p.record.UUID, suffixMetadata)))
	if err != nil {
		return 0, fmt.Errorf("metadata device of pool %q: %w", p.files.name, kernelError(err))
	}
	sb, err := p.readLiveSuperblock(info.Dev)
	if err != nil {
		return 0, fmt.Errorf("superblock of pool %q: %w", p.files.name, err)
	}
	return max(r.SnapshotsTaken, uint64(sb.Time)), nil
}

// Stop copies a pool's records and deactivates it in order. While anything of it is in use it is ErrBusy, names who, and has
// stopped nothing. A copy that cannot be made is an error once the pool is stopped.
func Stop(ctx context.Context, dirs Dirs, name string) error {
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return err
	}
	defer p.Close()
	s, err := p.exclusive(ctx, "stop")
	if err != nil {
		return err
	}
	defer s.Exit()
	if err := s.idle(ctx); err != nil {
		return fmt.Errorf("stop pool %q: %w", name, err)
	}
	notCopied := s.copyBeforeStop(ctx)
	s.releaseBeforeStop()
	if err := s.deactivateAll(ctx); err != nil {
		return fmt.Errorf("stop pool %q: %w", name, err)
	}
	b, err := p.backing()
	if err != nil {
		return err
	}
	if err := b.detached(ctx); err != nil {
		return fmt.Errorf("stop pool %q: %w", name, err)
	}
	if notCopied != nil {
		return fmt.Errorf("pool %q is stopped, but its records were not copied: %w", name, kernelError(notCopied))
	}
	return nil
}

// deactivateAll removes the pool's dm devices: thin devices first, then the pool, then what lies
// under it. The start/stop lock is held exclusively, so nobody makes new ones.
func (s *Session) deactivateAll(ctx context.Context) error {
	p := s.p
	// A copy of the folder has the same UUIDs, and nothing running.
	info, err := p.dm.Info(devmapper.ByUUID(deviceUUID(p.record.UUID, suffixPool)))
	ran := err == nil && info.Active
	if ran {
		err = p.ours(info.Dev)
	}
	if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
		return kernelError(err)
	}
	list, err := p.dm.List(devmapper.UUID(uuidPrefix(p.record.UUID)))
	if err != nil {
		return kernelError(err)
	}
	pool := deviceUUID(p.record.UUID, suffixPool)
	own := []devmapper.UUID{pool, deviceUUID(p.record.UUID, suffixMetadata), deviceUUID(p.record.UUID, suffixData)}
	for _, d := range list {
		if slices.Contains(own, d.UUID) {
			continue
		}
		if err := p.removeDevice(d.UUID); err != nil {
			return err
		}
	}
	if err := pointStopDevices.Hit(); err != nil {
		return err
	}
	if err := p.removeDevice(pool); err != nil {
		return err
	}
	if err := pointStopPool.Hit(); err != nil {
		return err
	}
	if ran {
		if err := s.keepSuperblock(ctx); err != nil {
			return err
		}
	}
	return p.removeLinear()
}

// removeDevice removes one dm device; one that is not there is no error.
func (p *Pool) removeDevice(uuid devmapper.UUID) error {
	_, err := p.dm.Remove(devmapper.ByUUID(uuid), devmapper.RemoveOptions{})
	if err == nil || errors.Is(err, devmapper.ErrNotFound) {
		return nil
	}
	return kernelError(err)
}

// idle tells whether anything uses the pool's thin devices: ErrBusy with the users' names. The start/stop
// lock is held exclusively.
func (s *Session) idle(ctx context.Context) error {
	if err := s.p.resumeDead(); err != nil {
		return err
	}
	users, err := s.users(ctx)
	if err != nil {
		return err
	}
	if len(users) == 0 {
		return nil
	}
	err = fmt.Errorf("in use: %s: %w", joinUsers(users), errs.ErrBusy)
	return errs.WithHint(err, "unmount or detach them first")
}

// resumeDead resumes the thin devices that are suspended. Whoever suspended one is dead, since nobody else is
// at work; and a file system that he had mounted for himself keeps the device open until it thaws.
func (p *Pool) resumeDead() error {
	devices, err := p.Devices()
	if err != nil {
		return err
	}
	for id, d := range devices {
		ref := devmapper.ByUUID(d.UUID)
		info, err := p.dm.Info(ref)
		if err == nil && info.Suspended && info.Active {
			_, err = p.dm.Resume(ref, devmapper.ResumeOptions{})
		}
		if err != nil && !errors.Is(err, devmapper.ErrNotFound) {
			return fmt.Errorf("resume thin device %d: %w", id, kernelError(err))
		}
	}
	return nil
}
