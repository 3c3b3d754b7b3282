package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointRenewStopped  = fault.New("pool.renew.stopped")
	pointRenewPrepared = fault.New("pool.renew.prepared")
	pointRenewRecorded = fault.New("pool.renew.recorded")
)

// Renewed tells what a renewal has done.
type Renewed struct{ Before, After Life }

// Renew gives a pool a new life: its counts of snapshots and thin ids begin anew, and what is in it stays as it is. The pool is
// stopped for that, and started again. progress is told what is done next; nil tells nobody.
//
// A copy of the metadata is rewritten beside it, and the records are renumbered in one transaction, which is what decides: a
// crash before it leaves the old pool, and after it the next start puts the copy in the metadata's place. Errors:
// ErrBusy while something is in use, ErrNoSpace without room for the copy, ErrDamaged where pool and records differ.
func Renew(ctx context.Context, dirs Dirs, name string, progress func(step string)) (Renewed, error) {
	if progress == nil {
		progress = func(string) {}
	}
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return Renewed{}, err
	}
	defer p.Close()
	s, err := p.exclusive(ctx, "renew")
	if err != nil {
		return Renewed{}, err
	}
	defer s.Exit()
	r := renewer{Session: s, progress: progress}
	if err := r.run(ctx); err != nil {
		return r.lives, fmt.Errorf("renew pool %q: %w", name, kernelError(err))
	}
	return r.lives, nil
}

// renewer is a Renew with its lock.
type renewer struct {
	*Session
	progress func(string)
	backing  backing
	lives    Renewed

	ids    []metadata.ThinID // in use, rising: the i-th becomes i
	low    metadata.ThinID   // what is in flight above it is to be cleaned up, by its new id
	tid    uint64            // of the new life
	places renewal
	taken  uint64 // snapshots, in the new life
}

func (r *renewer) run(ctx context.Context) (err error) {
	r.progress("stop of the pool")
	if err := r.stop(ctx); err != nil {
		return err
	}
	if err := r.plan(ctx); err != nil {
		return err
	}
	r.progress("renewal of the metadata")
	if err := r.prepare(ctx); err != nil {
		return errors.Join(err, r.p.files.dropRenewals())
	}
	if err := r.record(ctx); err != nil {
		return err // whether it was recorded after all, the next start finds out
	}
	if err := pointRenewRecorded.Hit(); err != nil {
		return err
	}
	r.progress("start of the pool")
	if err := r.start(ctx); err != nil {
		return err
	}
	// Older copies of the records have the old ids, which mean other devices now.
	if err := r.CopyRecords(ctx); err != nil {
		return fmt.Errorf("it is renewed, but its records were not copied: %w", err)
	}
	return nil
}

// stop sees to it that pool and records agree and nothing is under way, and stops the pool.
func (r *renewer) stop(ctx context.Context) error {
	err := r.look()
	if errors.Is(err, devmapper.ErrNotFound) {
		err = r.start(ctx)
	}
	if err != nil {
		return err
	}
	if err := r.idle(ctx); err != nil {
		return err
	}
	if err := r.Pair(ctx); err != nil {
		return err
	}
	if err := r.Writable(); err != nil {
		return err
	}
	if err := r.SettleMetadata(); err != nil {
		return err
	}
	if err := r.deactivateAll(ctx); err != nil {
		return err
	}
	b, err := r.p.backing()
	if err != nil {
		return err
	}
	if err := b.detached(ctx); err != nil {
		return err
	}
	r.backing = b
	return pointRenewStopped.Hit()
}

// plan collects the ids that are in use, by the records and by the metadata.
func (r *renewer) plan(ctx context.Context) error {
	if err := r.readRecord(ctx); err != nil {
		return err
	}
	var err error
	if r.tid, err = newTransactionID(); err != nil {
		return err
	}
	r.places = r.p.files.renewal(r.tid)
	used := map[metadata.ThinID]bool{labelID: true}
	err = r.Records.View(ctx, func(tx *metadata.Tx) error {
		tombs, err := tx.Tombstones()
		for _, t := range tombs {
			used[t.ID] = true
		}
		return errors.Join(err, tx.Nodes(func(n metadata.Node) error {
			used[n.ID] = true
			return nil
		}))
	})
	if err != nil {
		return err
	}
	unnamed, super, err := r.unnamed(ctx, used)
	if err != nil {
		return err
	}
	r.ids = slices.Sorted(maps.Keys(used))
	r.low = metadata.ThinID(len(r.ids))
	if len(unnamed) > 0 {
		i, _ := slices.BinarySearch(r.ids, slices.Min(unnamed))
		r.low = metadata.ThinID(i)
	}
	r.lives.Before = lifeOf(r.p.record, uint64(super.Time))
	return nil
}

// unnamed adds the thin devices that the metadata has and no record names. They are in flight, or somebody else's, which
// a renewal must not turn into ones that recovery would clean up.
func (r *renewer) unnamed(ctx context.Context, used map[metadata.ThinID]bool) (unnamed []metadata.ThinID, super thinmeta.Superblock, err error) {
	media, err := r.backing.open(ctx, false)
	if err != nil {
		return nil, super, err
	}
	defer media.Close()
	m, err := thinmeta.Open(media.metadata, thinmeta.Options{})
	if err != nil {
		return nil, super, r.unsound(err)
	}
	for d, err := range m.Devices(ctx) {
		if err != nil {
			return nil, super, r.unsound(err)
		}
		id := metadata.ThinID(d.ID)
		if used[id] {
			continue
		}
		if id < r.p.record.LowID || id >= r.p.record.HighID {
			err := fmt.Errorf("thin device %d is in no record: %w", id, errs.ErrDamaged)
			return nil, super, errs.WithHint(err, "see what dmlayer pool check "+r.p.files.name+" says")
		}
		used[id] = true
		unnamed = append(unnamed, id)
	}
	return unnamed, m.Superblock(), nil
}

// unsound gives what thinmeta says of metadata its class.
func (r *renewer) unsound(err error) error {
	if !errors.Is(err, thinmeta.ErrDamaged) && !errors.Is(err, thinmeta.ErrSpent) && !errors.Is(err, thinmeta.ErrHeld) {
		return err
	}
	hint := "see what dmlayer pool check " + r.p.files.name + " says"
	if errors.Is(err, thinmeta.ErrSpent) {
		hint = beyondAdvice
	}
	return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrDamaged), hint)
}

// prepare makes, beside what is there, the metadata and the side files of the new life, and makes them durable.
func (r *renewer) prepare(ctx context.Context) error {
	if err := r.p.files.dropRenewals(); err != nil { // of renewals that died
		return err
	}
	if err := r.copyMetadata(ctx); err != nil {
		return err
	}
	if err := r.linkBlobs(); err != nil {
		return err
	}
	if err := fsutil.SyncFS(r.p.files.dir()); err != nil {
		return err
	}
	return pointRenewPrepared.Hit()
}

func (r *renewer) copyMetadata(ctx context.Context) (err error) {
	media, err := r.backing.open(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, media.Close()) }()
	if err := fsutil.Allocate(ctx, r.places.metadata, uint64(media.metadata.size), fsutil.Full); err != nil {
		return err
	}
	to, err := os.OpenFile(r.places.metadata, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	if _, err := io.Copy(to, io.NewSectionReader(media.metadata, 0, media.metadata.size)); err != nil {
		return err
	}
	ids := make([]uint64, len(r.ids))
	for i, id := range r.ids {
		ids[i] = uint64(id)
	}
	super, err := thinmeta.Renew(ctx, to, thinmeta.Renewal{IDs: ids, TransactionID: r.tid})
	if err != nil {
		return r.unsound(err)
	}
	r.taken = uint64(super.Time)
	if err := r.soundCopy(ctx, to); err != nil {
		return err
	}
	return to.Sync()
}

// soundCopy looks once more at what is to take the metadata's place.
func (r *renewer) soundCopy(ctx context.Context, f io.ReaderAt) error {
	m, err := thinmeta.Open(f, thinmeta.Options{})
	if err != nil {
		return err
	}
	report, err := m.Check(ctx)
	if err == nil {
		err = report.Err()
	}
	if err != nil {
		return fmt.Errorf("the renewed metadata: %w: %w", err, errs.ErrDamaged)
	}
	return nil
}

// linkBlobs gives the side files of nodes a second place, under the nodes' new ids. Those of ids that are not in use are nobody's.
func (r *renewer) linkBlobs() error {
	dirs, err := os.ReadDir(r.p.files.blobs())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := os.Mkdir(r.places.blobs, 0o700); err != nil {
		return err
	}
	for _, d := range dirs {
		id, err := strconv.ParseUint(d.Name(), 10, 32)
		i, used := slices.BinarySearch(r.ids, metadata.ThinID(id))
		if err != nil || !used {
			continue
		}
		if err := linkFiles(filepath.Join(r.p.files.blobs(), d.Name()), filepath.Join(r.places.blobs, strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}

func linkFiles(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	if err := os.Mkdir(to, 0o700); err != nil {
		return err
	}
	for _, e := range entries {
		if err := os.Link(filepath.Join(from, e.Name()), filepath.Join(to, e.Name())); err != nil {
			return err
		}
	}
	return nil
}

// record renumbers the records: from here on the pool has its new life.
func (r *renewer) record(ctx context.Context) error {
	// Whoever knows the cursor would go on in a window that is no more. Up to the transaction the old high mark is as good.
	high := r.p.record.HighID
	if err := r.writeCursor(cursor{next: high, high: high}); err != nil {
		return err
	}
	return r.Records.Update(ctx, func(tx *metadata.Tx) error {
		c, err := metadata.CopyOf(tx, time.Now())
		if err != nil {
			return err
		}
		if err := c.Renumber(r.ids); err != nil {
			return err
		}
		p := &c.Pool
		p.LowID, p.HighID = r.low, metadata.ThinID(len(r.ids))
		p.TransactionID, p.Pending, p.ImportedFrom = r.tid, false, 0
		p.SnapshotsTaken = r.taken
		p.Renewed = r.tid
		r.lives.After = lifeOf(*p, 0)
		return tx.Replace(c)
	})
}
