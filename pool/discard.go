package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/internal/pause"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointDiscardActive = fault.New("pool.discard.activated")
	pointDiscardStep   = fault.New("pool.discard.step")
)

const (
	// discardAtOnce is how much is discarded at a time: the kernel does it in the pool's only worker, behind which everybody's new
	// blocks wait.
	discardAtOnce = 64 << 20
	// minDiscard is what a device must have for itself for its backing to be told: a discard takes as long as the rest of a
	// removal several times over (docs/performance.md).
	minDiscard = 1 << 20
	// leafMappings is how many mappings a leaf of the metadata has at least, for what a discard may need of it.
	leafMappings = 60
)

// extent is a range of a thin device, in bytes.
type extent struct{ offset, length uint64 }

// Dead is what thin devices that are about to be deleted have for themselves, as far as it is worth to be discarded.
type Dead map[metadata.ThinID][]extent

// Bytes is how much a thin device has that is worth to be discarded.
func (d Dead) Bytes(id metadata.ThinID) (n int64) {
	for _, e := range d[id] {
		n += int64(e.length)
	}
	return n
}

// DiscardOptions say how much Discard may do at once.
type DiscardOptions struct {
	// Budget, unless nil, is how many bytes may be discarded, up to a step more, and goes down by as many.
	Budget *int64
	// Known is what ReadDead returned, for this device among others; without it, Discard looks itself.
	Known Dead
	// Progress, unless nil, is called before the first step and after each with the bytes that are done and all that there are.
	Progress func(done, total int64)
}

// Discard tells the backing that a thin device's blocks are not needed any more, where the backing wants to know. The device is
// one that is about to be deleted, which would not tell: its lock is held, it is not active, and it is known to be dead durably.
// more says that the budget was too small.
//
// Only blocks are discarded that no other device has. What was discarded is not mapped any more, so that whoever comes after a crash goes
// on from there. Between two steps others get as much time as the last one took. That a device cannot be discarded, or not all of
// it, is no error: it can be deleted all the same. Errors are the context's, and those of locks.
func (s *Session) Discard(ctx context.Context, id metadata.ThinID, o DiscardOptions) (more bool, err error) {
	if o.Known == nil {
		if o.Known, err = s.ReadDead(ctx, id); err != nil {
			return false, err
		}
	}
	runs := o.Known[id]
	if len(runs) == 0 || !s.affords(o.Known.Bytes(id)) {
		return false, nil
	}
	steps := stepsOf(runs, discardAtOnce)
	if o.Budget != nil {
		affordable := int((max(*o.Budget, 0) + discardAtOnce - 1) / discardAtOnce)
		more = len(steps) > affordable
		steps = steps[:min(len(steps), affordable)]
		*o.Budget -= int64(len(steps)) * discardAtOnce
	}
	if len(steps) == 0 {
		return more, nil
	}
	told := progress{tell: o.Progress, total: o.Known.Bytes(id)}
	err = s.withDead(id, runs[len(runs)-1], func(f *os.File) error {
		err := s.discard(ctx, f, steps, &told)
		if err == nil && more { // so that the next one finds it done: the pool commits what it is told to, else now and then
			_ = fsutil.Flush(f)
		}
		return err
	})
	return more, err
}

// progress adds up what was discarded.
type progress struct {
	tell        func(done, total int64)
	done, total int64
}

func (p *progress) add(n int64) {
	p.done += n
	if p.tell != nil {
		p.tell(p.done, p.total)
	}
}

// errHeld says that there is a snapshot of the metadata, with which everything is shared.
var errHeld = errors.New("there is a snapshot of the metadata")

// ReadDead looks, once for all of them, at what thin devices have for themselves whose locks are held and that are not active. It
// is read from the live metadata: nobody changes the mappings of a device that is not active, and if what is shared is taken for
// not shared or the other way round, a discard costs or gives less. Who reads the metadata is waited for: the superblock tells of his snapshot, and
// what it leads to is of the same moment. Errors are the context's, and those of locks.
func (s *Session) ReadDead(ctx context.Context, ids ...metadata.ThinID) (Dead, error) {
	if s.Status.Discard != thinpool.DiscardPassdown || !s.Status.Commits() {
		return Dead{}, nil
	}
	dead, err := s.lookAtDead(ctx, ids, false)
	if errors.Is(err, errHeld) {
		unlock, lerr := s.withoutReaders(ctx)
		if lerr != nil {
			return nil, lerr
		}
		defer unlock()
		dead, err = s.lookAtDead(ctx, ids, true) // what there is now is of a dead reader
	}
	if ctx.Err() != nil {
		return nil, err
	}
	if err != nil {
		s.p.log.Debug("read what dead thin devices have for themselves", "ids", ids, "error", err)
	}
	return dead, nil
}

// lookAtDead is ReadDead; unless held, it is errHeld where there is a snapshot of the metadata.
func (s *Session) lookAtDead(ctx context.Context, ids []metadata.ThinID, held bool) (Dead, error) {
	dead := Dead{}
	err := s.glance(func(m *thinmeta.Metadata) error {
		if !held && m.Superblock().HeldRoot != 0 {
			return errHeld
		}
		clear(dead)
		for _, id := range ids {
			if err := s.unshared(ctx, m, id, dead); err != nil {
				return err
			}
		}
		return nil
	})
	return dead, err
}

// unshared adds what a thin device has for itself. One that is not there any more has nothing.
func (s *Session) unshared(ctx context.Context, m *thinmeta.Metadata, id metadata.ThinID, dead Dead) error {
	block := uint64(s.p.record.BlockSize)
	var runs []extent
	var bytes uint64
	for run, err := range m.Unshared(ctx, uint64(id)) {
		if errors.Is(err, thinmeta.ErrNoDevice) {
			return nil
		}
		if err != nil {
			return err
		}
		if n := len(runs); n > 0 && runs[n-1].offset+runs[n-1].length == run.Begin*block {
			runs[n-1].length += run.Length * block
		} else {
			runs = append(runs, extent{run.Begin * block, run.Length * block})
		}
		bytes += run.Length * block
	}
	if bytes >= minDiscard {
		dead[id] = runs
	}
	return nil
}

// withoutReaders keeps the pool's metadata from being read: a metadata snapshot shares all blocks, and what is discarded
// while there is one does not reach the backing.
func (s *Session) withoutReaders(ctx context.Context) (unlock func(), err error) {
	if err := s.holder.Lock(ctx, at(offsetMetaSnap), lockfile.Shared); err != nil {
		return nil, fmt.Errorf("pool %q: %w", s.p.files.name, err)
	}
	return func() { s.unlock(offsetMetaSnap) }, nil
}

// affords tells whether there is enough metadata for a discard: each leaf that changes is written anew before the old one
// is free.
func (s *Session) affords(bytes int64) bool {
	leaves := uint64(bytes/s.p.record.BlockSize) / leafMappings
	return s.Status.FreeMetadata() >= minFreeMetadata+leaves
}

// stepsOf cuts extents up so that each step has at most that many bytes.
func stepsOf(runs []extent, most uint64) (steps [][]extent) {
	var room uint64
	for _, r := range runs {
		for r.length > 0 {
			if room == 0 {
				steps, room = append(steps, nil), most
			}
			n := min(r.length, room)
			last := &steps[len(steps)-1]
			*last = append(*last, extent{r.offset, n})
			r.offset, r.length, room = r.offset+n, r.length-n, room-n
		}
	}
	return steps
}

// withDead runs fn on the device of a thin id that is about to be deleted, active for the moment. last is where it ends at least. What a
// crash leaves of the device, the next one who deletes the id takes away. A device that cannot be had is no error.
func (s *Session) withDead(id metadata.ThinID, last extent, fn func(*os.File) error) (err error) {
	uuid := s.p.DeviceUUID(id)
	info, err := thinpool.Activate(s.p.dm, thinpool.ThinSpec{
		Name: s.p.DeviceName(id), UUID: uuid, Pool: s.Device, ID: thinpool.ID(id), Size: devmapper.SectorsOf(last.offset + last.length),
	})
	if err != nil {
		s.p.log.Debug("activate a dead thin device", "id", id, "error", err)
		return nil
	}
	defer func() {
		if rerr := s.p.removeDevice(uuid); rerr != nil {
			s.p.log.Debug("deactivate a dead thin device", "id", id, "error", rerr)
		}
	}()
	if err := pointDiscardActive.Hit(); err != nil {
		return err
	}
	f, _, err := s.p.OpenDevice(info.Dev, true)
	if err != nil {
		s.p.log.Debug("open a dead thin device", "id", id, "error", err)
		return nil
	}
	defer func() { _ = fsutil.BetweenStarts(f.Close) }()
	return fn(f)
}

// discard does the steps, and pauses between them.
func (s *Session) discard(ctx context.Context, f *os.File, steps [][]extent, told *progress) error {
	var took time.Duration
	told.add(0)
	for _, step := range steps {
		if err := pause.For(ctx, took); err != nil { // the pool is others' for as long as it was kept from them
			return fmt.Errorf("discard: %w", err)
		}
		began := time.Now()
		ok, err := s.discardStep(ctx, f, step)
		if !ok || err != nil {
			return err
		}
		took = time.Since(began)
		for _, e := range step {
			told.add(int64(e.length))
		}
		if err := pointDiscardStep.Hit(); err != nil {
			return err
		}
	}
	return nil
}

// discardStep discards some extents. false says that the device does not take it.
func (s *Session) discardStep(ctx context.Context, f *os.File, step []extent) (bool, error) {
	unlock, err := s.withoutReaders(ctx)
	if err != nil {
		return false, err
	}
	defer unlock()
	for _, e := range step {
		if err := thinpool.Discard(ctx, f, e.offset, e.length); err != nil {
			s.p.log.Debug("discard a dead thin device", "error", err)
			return false, ctx.Err()
		}
	}
	return true, nil
}
