package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointRecoverSeen    = fault.New("layer.recover.candidates")
	pointRecoverLocked  = fault.New("layer.recover.locked")
	pointRecoverRemoved = fault.New("layer.recover.deactivated")
	pointRecoverDeleted = fault.New("layer.recover.deleted")
)

// recoverDiscards is how many bytes a recovery discards at most, so that no open takes long; the next one goes on.
const recoverDiscards = 1 << 30

// recover finishes what dead processes left. Its cost follows what was in flight, not how many nodes
// there are. Nothing is touched whose lock somebody has, or that the store names when it is read again
// with the lock in hand.
func (o *op) recover(ctx context.Context) error {
	defer func() { o.seen = seen{} }() // of nodes whose locks are given back
	if err := o.settleMarked(ctx); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if o.Writable() != nil {
		return nil // what can be read stays readable; a pool that cannot commit cannot be cleaned up
	}
	if err := o.SettleMetadata(); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	left, tombs, err := o.candidates(ctx)
	if err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := pointRecoverSeen.Hit(); err != nil {
		return err
	}
	if len(tombs) > 0 {
		if served, err := o.s.pool.Served(ctx); err != nil || !served {
			left = append(left, tombs...)
		}
	}
	c := cleaning{budget: recoverDiscards}
	if err := o.cleanAll(ctx, left, len(left), &c); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	return nil
}

// cleaning is what is done about thin devices that nothing names, or that are being deleted.
type cleaning struct {
	budget  int64 // of bytes to discard
	known   pool.Dead
	gone    int               // how many were deleted
	untried int               // how many were left for another go
	more    int               // how many have more to discard than the budget allows
	open    []metadata.ThinID // what somebody has open
	failed  []metadata.ThinID // what an error is about, or what has been activated without dmlayer
	// progress, unless nil, is told how much of a thin device was discarded.
	progress func(id metadata.ThinID, done, total int64)
}

// cleanAll cleans up those of the ids whose locks can be had at once, and that are still nobody's by then: at most that many, so that
// what others are at work on keeps nothing else from its turn.
func (o *op) cleanAll(ctx context.Context, left []metadata.ThinID, most int, c *cleaning) error {
	var locked []metadata.ThinID
	defer func() {
		for _, id := range locked {
			o.UnlockID(id)
		}
	}()
	for i, id := range left {
		if len(locked) == most {
			c.untried = len(left) - i
			break
		}
		ok, err := o.TryLockID(id)
		if err != nil {
			return err
		}
		if ok {
			locked = append(locked, id)
		}
	}
	if len(locked) == 0 {
		return nil
	}
	if err := pointRecoverLocked.Hit(); err != nil {
		return err
	}
	return o.cleanLocked(ctx, locked, c)
}

// cleanLocked is cleanAll for ids whose locks are held.
func (o *op) cleanLocked(ctx context.Context, locked []metadata.ThinID, c *cleaning) error {
	dead, err := o.stillLeft(ctx, locked)
	if err != nil || len(dead) == 0 {
		return err
	}
	// What is deleted by a record must not come back with the record's loss.
	if err := o.Records.Sync(ctx); err != nil {
		return err
	}
	gone := o.s.seenGone()
	dead = slices.DeleteFunc(dead, func(id metadata.ThinID) bool { return gone[id] })
	if len(dead) == 0 {
		return nil
	}
	if c.known, err = o.ReadDead(ctx, dead...); err != nil {
		return err
	}
	var all error
	for _, id := range dead {
		if err := o.clean(ctx, id, c); err != nil {
			all = errors.Join(all, fmt.Errorf("thin device %d: %w", id, err))
			c.failed = append(c.failed, id)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return all
}

// candidates returns the ids in flight that nothing names, and the tombstones of what was not seen gone.
func (o *op) candidates(ctx context.Context) (inFlight, tombs []metadata.ThinID, err error) {
	err = o.WhileKnown(ctx, func() (err error) {
		inFlight, tombs, err = o.candidatesNow(ctx)
		return err
	})
	return inFlight, tombs, err
}

func (o *op) candidatesNow(ctx context.Context) (inFlight, tombs []metadata.ThinID, err error) {
	err = o.view(ctx, func(tx *metadata.Tx) error {
		record, err := tx.Pool()
		if err != nil {
			return err
		}
		o.s.enterLife(record)
		low, cursor, err := o.InFlight(record)
		if err != nil {
			return err
		}
		for id := low; id < cursor; id++ {
			if !tx.Named(id) {
				inFlight = append(inFlight, id)
			}
		}
		tombs, err = o.s.tombstones(tx)
		return err
	})
	return inFlight, tombs, err
}

// tombstones are those of thin devices that this process has not seen gone.
func (s *Store) tombstones(tx *metadata.Tx) (ids []metadata.ThinID, err error) {
	tombs, err := tx.Tombstones()
	gone := s.seenGone()
	for _, t := range tombs {
		if !gone[t.ID] {
			ids = append(ids, t.ID)
		}
	}
	return ids, err
}

// stillLeft reads the store again with the locks in hand: an id's owner may have recorded it and let
// go between the first look and the lock.
func (o *op) stillLeft(ctx context.Context, ids []metadata.ThinID) ([]metadata.ThinID, error) {
	var dead []metadata.ThinID
	err := o.view(ctx, func(tx *metadata.Tx) error {
		record, err := tx.Pool()
		if err != nil {
			return err
		}
		for _, id := range ids {
			inFlight := id >= record.LowID && id < record.HighID && !tx.Named(id)
			if inFlight || tx.Tombstone(id) {
				dead = append(dead, id)
			}
		}
		return nil
	})
	return dead, err
}

// clean deactivates and deletes a thin device that nothing names, or that is being deleted, and
// removes its side files. Its lock is held. One that somebody has open stays until the next time, and its kernel
// device goes with the last who has.
func (o *op) clean(ctx context.Context, id metadata.ThinID, c *cleaning) error {
	if err := o.resumeDead(id); err != nil {
		return err
	}
	err := o.remove(id)
	if errors.Is(err, devmapper.ErrBusy) {
		c.open = append(c.open, id)
		return o.removeLater(id)
	}
	if err != nil {
		return err
	}
	if err := pointRecoverRemoved.Hit(); err != nil {
		return err
	}
	options := pool.DiscardOptions{Budget: &c.budget, Known: c.known}
	if c.progress != nil {
		options.Progress = func(done, total int64) { c.progress(id, done, total) }
	}
	end, err := o.deleteWith(ctx, id, options)
	switch {
	case err != nil:
	case end == deletedMore:
		c.more++
	case end == deletedOpen: // by a device that is not ours, of which nothing tells when it goes
		c.failed = append(c.failed, id)
	default:
		c.gone++
	}
	return err
}

// removeLater has the kernel remove a device when the last who has it open closes it.
func (o *op) removeLater(id metadata.ThinID) error {
	_, err := o.dm().Remove(o.ref(id), devmapper.RemoveOptions{Deferred: true})
	return notFoundIsNil(err)
}

// deleteFirst deletes a thin device of which there is a tombstone, as far as that goes at once: what has more for itself than a Reap discards
// in one go is left to it, and all where somebody serves the pool, who does it for many removals together.
func (o *op) deleteFirst(ctx context.Context, id metadata.ThinID) error {
	if served, err := o.Served(); err != nil || served {
		return err
	}
	budget := int64(reapDiscards)
	_, err := o.deleteWith(ctx, id, pool.DiscardOptions{Budget: &budget})
	return err
}

// deletion is how a deletion ended.
type deletion int

const (
	deletedGone deletion = iota
	deletedMore          // there is more to discard than the budget allowed
	deletedOpen          // another program has activated it; the tombstone or the window remembers it
)

// deleteWith deletes a thin device and its side files, and tells the backing that its blocks are free, within the limits of
// pool.Session.Discard. A device that is not there is done; one that somebody has open, or that has more than the budget allows, stays until
// the next time. When it has marked the id gone, the pool's status has shown that the deletion was committed.
func (o *op) deleteWith(ctx context.Context, id metadata.ThinID, options pool.DiscardOptions) (deletion, error) {
	return o.deleteAll(ctx, id, true, options)
}

// deleteNode is deleteWith for a node whose record is known. Only layers have side files.
func (o *op) deleteNode(ctx context.Context, n metadata.Node, options pool.DiscardOptions) (deletion, error) {
	return o.deleteAll(ctx, n.ID, n.Kind != metadata.KindSnapshot && n.Kind != metadata.KindVolume, options)
}

func (o *op) deleteAll(ctx context.Context, id metadata.ThinID, blobs bool, options pool.DiscardOptions) (deletion, error) {
	more, err := o.Discard(ctx, id, options)
	if err != nil || more {
		return deletedMore, err
	}
	err = o.Thin.Delete(thinpool.ID(id))
	if errors.Is(err, thinpool.ErrBusy) {
		return deletedOpen, nil
	}
	if err != nil && !errors.Is(err, thinpool.ErrNoDevice) {
		return deletedGone, err
	}
	if err := pointRecoverDeleted.Hit(); err != nil {
		return deletedGone, err
	}
	if blobs {
		if err := o.removeBlobs(id); err != nil {
			return deletedGone, err
		}
	}
	o.s.markGone(id)
	return deletedGone, nil
}

// removeBlobs removes a node's side files for good: when the tombstone is dropped, nothing names them any more.
// Most nodes have none.
func (o *op) removeBlobs(id metadata.ThinID) error {
	dir := o.s.blobDir(id)
	err := unix.Rmdir(dir)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return fsutil.SyncDir(o.s.pool.BlobDir())
}

// settleMarked brings the devices to rest that dead processes were changing: it resumes what is
// suspended and deactivates what nobody has open or claims.
func (o *op) settleMarked(ctx context.Context) error {
	ids, err := o.Marked()
	if err != nil {
		return err
	}
	var all error
	for _, id := range ids {
		ok, err := o.TryLockID(id)
		if err != nil {
			return err
		}
		if !ok {
			continue // its owner lives
		}
		err = o.settleDevice(ctx, id)
		if err == nil {
			err = o.ClearMark(id)
		}
		o.UnlockID(id)
		all = errors.Join(all, err)
	}
	return all
}

// settleDevice is settleMarked for one device, whose lock is held. One that somebody views goes when he
// ends, whichever way. A claim on what has no device is of one who died before he gave it out, unless he died while he made it anew
// for one who had been promised it before.
func (o *op) settleDevice(ctx context.Context, id metadata.ThinID) error {
	if err := o.resumeDead(id); err != nil {
		return err
	}
	unmade := o.seen.id == id && o.seen.unmade
	_, err := o.dm().Info(o.ref(id))
	if errors.Is(err, devmapper.ErrNotFound) {
		if unmade {
			if promised, err := o.wasPromised(ctx, id); promised || err != nil {
				return err
			}
		}
		return o.unclaimAll(id)
	}
	if err != nil {
		return err
	}
	return o.release(metadata.Node{ID: id})
}

// wasPromised tells whether a node's link is there, which is made last when it is given out.
func (o *op) wasPromised(ctx context.Context, id metadata.ThinID) (bool, error) {
	var n metadata.Node
	err := o.view(ctx, func(tx *metadata.Tx) (err error) {
		n, err = tx.NodeByID(id)
		return err
	})
	if err == nil {
		_, err = os.Lstat(filepath.Join(o.s.pool.DeviceDir(), n.Name))
	}
	if errors.Is(err, errs.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
