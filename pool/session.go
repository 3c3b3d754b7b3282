package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// The ranges of the lock file. Ids lie at their own offset.
const (
	offsetStartStop = 1<<32 + iota
	offsetPool
	offsetStore
	offsetMetaSnap
	offsetGrow  // whoever changes the tables of the running pool
	offsetServe // whoever serves the pool, see Serve
	offsetLVM   // programs of lvm2's that change its volumes, see lvm.Guard
	offsetChain = 1 << 40
	chainSpan   = 1 << 40
)

func at(offset int64) lockfile.Range { return lockfile.Range{Start: offset, Len: 1} }

// Pool is a pool of which the record has been read. It is safe for concurrent use; what it does is
// done in Sessions.
type Pool struct {
	files   files
	dm      *devmapper.Client
	locks   *lockfile.File
	log     *slog.Logger
	records *metadata.Store // of no holder

	mu          sync.Mutex
	idleHolders []*lockfile.Holder
	verified    devmapper.DevNum // of the running pool that was found to be ours
	closed      bool
	glances     glances
	record      metadata.Pool // as it was when the pool was opened: only what never changes is used
	wipe        bool          // Create may wipe what is on the devices
	disksLocked bool          // Create has the lock of all disks
}

// Open reads the pool's record. It starts nothing; a pool that died while it was being made or
// destroyed is cleaned up, and is ErrNotFound.
func Open(ctx context.Context, dirs Dirs, name string, log *slog.Logger) (*Pool, error) {
	p, err := open(dirs, name, log)
	if err != nil {
		return nil, err
	}
	if err := p.load(ctx); err != nil {
		_ = p.Close()
		return nil, err
	}
	return p, nil
}

// open prepares a Pool whose record has not been read.
func open(dirs Dirs, name string, log *slog.Logger) (*Pool, error) {
	if err := ValidateName("pool", name); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	dirs, err := dirs.absolute()
	if err != nil {
		return nil, err
	}
	p := &Pool{files: files{dirs: dirs, name: name}, log: log}
	lock, err := p.files.lock()
	if err != nil {
		return nil, p.notFound(err)
	}
	if err := makeDirs(filepath.Dir(lock)); err != nil {
		return nil, err
	}
	dm, err := devmapper.Open()
	if err != nil {
		return nil, kernelError(err)
	}
	p.dm = dm
	p.records = metadata.New(p.files.store(), nil)
	p.locks = lockfile.Open(lock)
	return p, nil
}

// Close releases what Open took. Sessions must have ended.
func (p *Pool) Close() error {
	p.mu.Lock()
	p.closed = true
	idle := p.idleHolders
	p.idleHolders = nil
	p.mu.Unlock()
	var err error
	for _, h := range idle {
		err = errors.Join(err, h.Close())
	}
	return errors.Join(err, p.records.Close(), p.dm.Close())
}

// Name returns the pool's name.
func (p *Pool) Name() string { return p.files.name }

// UUID returns the pool's UUID.
func (p *Pool) UUID() string { return p.record.UUID }

// Record returns the record as it was when the pool was opened. Settings do not change; the
// transaction id and the window of thin ids do.
func (p *Pool) Record() metadata.Pool { return p.record }

// Devmapper returns the pool's client, which counts the ioctls.
func (p *Pool) Devmapper() *devmapper.Client { return p.dm }

// Updates returns how many durable transactions this process has begun; see metadata.Store.
func (p *Pool) Updates() uint64 { return p.records.Updates() }

// StateDir returns the folder for what must not outlive the machine's uptime.
func (p *Pool) StateDir() string { return p.files.state(p.record.UUID) }

// DeviceDir returns the folder of the links that are promised to users.
func (p *Pool) DeviceDir() string { return p.files.deviceDir() }

// MountDir returns the folder of the default mount points.
func (p *Pool) MountDir() string { return p.files.mountDir() }

// BlobDir returns the folder of the side files of nodes.
func (p *Pool) BlobDir() string { return p.files.blobs() }

// DeviceUUID returns the dm UUID of a thin device, which is the same however it is activated, so
// that the kernel refuses a second activation.
func (p *Pool) DeviceUUID(id metadata.ThinID) devmapper.UUID {
	return deviceUUID(p.record.UUID, idSuffix(id))
}

// DeviceName returns the dm name of a thin device.
func (p *Pool) DeviceName(id metadata.ThinID) devmapper.Name {
	return deviceName(p.record.UUID, idSuffix(id))
}

// Session is one operation on a pool: one holder of locks. It is not safe for concurrent use; take
// one per goroutine.
type Session struct {
	p       *Pool
	holder  *lockfile.Holder
	Records *metadata.Store
	Thin    *thinpool.Pool
	Device  devmapper.DevNum    // of the pool
	Status  thinpool.PoolStatus // as it was when the session began
	marked  []metadata.ThinID

	// Of the pool's device when the session began: whether it was suspended, and the number of its last event.
	suspended bool
	event     uint32

	recorded bool // Create has written the pool's record
	relabel  bool // a repair has lost the label: the start makes it again

	dataName, metadataName string // where start has found the devices of a device backing
}

// maxIdle is how many holders without a lock a pool keeps for the sessions to come.
const maxIdle = 8

func (p *Pool) takeHolder(ctx context.Context) (*lockfile.Holder, error) {
	p.mu.Lock()
	if n := len(p.idleHolders); n > 0 && ctx.Err() == nil {
		h := p.idleHolders[n-1]
		p.idleHolders = p.idleHolders[:n-1]
		p.mu.Unlock()
		return h, nil
	}
	p.mu.Unlock()
	return p.locks.Holder(ctx)
}

func (p *Pool) giveHolder(h *lockfile.Holder) {
	if err := h.Release(); err == nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if !p.closed && len(p.idleHolders) < maxIdle {
			p.idleHolders = append(p.idleHolders, h)
			return
		}
	}
	_ = h.Close()
}

// session returns a holder without any lock.
func (p *Pool) session(ctx context.Context) (*Session, error) {
	h, err := p.takeHolder(ctx)
	if err != nil {
		return nil, fmt.Errorf("pool %q: %w", p.files.name, err)
	}
	s := &Session{p: p, holder: h}
	s.Records = p.records.With(s)
	return s, nil
}

// LockStore is the store's lock, for package metadata.
func (s *Session) LockStore(ctx context.Context, shared bool) (func(), error) {
	mode := lockfile.Exclusive
	if shared {
		mode = lockfile.Shared
	}
	if err := s.holder.Lock(ctx, at(offsetStore), mode); err != nil {
		return nil, err
	}
	return func() { s.unlock(offsetStore) }, nil
}

// Reader returns a session that can only read the records: it holds no lock and no pool need run.
func (p *Pool) Reader(ctx context.Context) (*Session, error) { return p.session(ctx) }

// Enter begins an operation: it holds the start/stop lock shared and makes sure that the pool runs.
func (p *Pool) Enter(ctx context.Context) (*Session, error) {
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.enter(ctx); err != nil {
		s.Exit()
		return nil, err
	}
	return s, nil
}

// Hold begins an operation on devices that are active, which keep the pool running: it holds the
// start/stop lock shared and asks nothing. Thin, Device and Status are not set.
func (p *Pool) Hold(ctx context.Context) (*Session, error) {
	s, err := p.session(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.holder.Lock(ctx, at(offsetStartStop), lockfile.Shared); err != nil {
		s.Exit()
		return nil, fmt.Errorf("pool %q: %w", p.files.name, err)
	}
	return s, nil
}

func (s *Session) enter(ctx context.Context) error {
	for {
		if err := s.holder.Lock(ctx, at(offsetStartStop), lockfile.Shared); err != nil {
			return fmt.Errorf("pool %q: %w", s.p.files.name, err)
		}
		err := s.look()
		if err == nil {
			return kernelError(s.rouse(ctx))
		}
		if !errors.Is(err, devmapper.ErrNotFound) {
			return kernelError(err)
		}
		// Never upgraded: two who upgrade wait for each other.
		s.unlock(offsetStartStop)
		if err := s.startLocked(ctx); err != nil {
			return err
		}
	}
}

// rouse brings a pool back to what it is without those who have died: who changed its tables, or was about to make it larger.
func (s *Session) rouse(ctx context.Context) error {
	if s.suspended {
		if err := s.wake(ctx); err != nil {
			return err
		}
	}
	if err := s.settleFull(ctx); err != nil && ctx.Err() == nil { // the kernel lets nobody wait for longer than a minute
		s.p.log.Warn("writers may wait for room that nobody makes", "pool", s.p.files.name, "error", err)
	}
	return nil
}

// look finds the running pool.
func (s *Session) look() error {
	ref := devmapper.ByUUID(deviceUUID(s.p.record.UUID, suffixPool))
	thin := thinpool.NewPool(s.p.dm, ref)
	st, info, err := thin.StatusInfo()
	if errors.Is(err, thinpool.ErrWrongTarget) && !info.Active {
		return devmapper.ErrNotFound // made but never resumed: its maker died
	}
	if err != nil {
		return err
	}
	if s.p.startDied() {
		return devmapper.ErrNotFound
	}
	if err := s.p.ours(info.Dev); err != nil {
		return err
	}
	s.Thin, s.Device, s.Status, s.suspended = thin, info.Dev, st, info.Suspended
	s.event = info.EventNr
	return nil
}

// ours is ErrDamaged where the running pool of our UUID lies on other files than this folder's: one of
// the two is a copy of the other. It is looked at once for each device that the pool gets.
func (p *Pool) ours(dev devmapper.DevNum) error {
	p.mu.Lock()
	known := p.verified == dev
	p.mu.Unlock()
	if known {
		return nil
	}
	b, err := p.backing()
	if err != nil {
		return err
	}
	under, err := b.under(p.dm)
	if err != nil {
		return kernelError(err)
	}
	if !under {
		return p.mispaired("the pool that runs lies on other files: %s is a copy of its folder, or the other way round", p.files.dir())
	}
	p.mu.Lock()
	p.verified = dev
	p.mu.Unlock()
	return nil
}

// startLocked starts the pool under the exclusive lock, which it gives back.
func (s *Session) startLocked(ctx context.Context) error {
	if err := s.holder.Lock(ctx, at(offsetStartStop), lockfile.Exclusive); err != nil {
		return fmt.Errorf("start pool %q: %w", s.p.files.name, err)
	}
	defer s.unlock(offsetStartStop)
	if err := s.look(); err == nil || !errors.Is(err, devmapper.ErrNotFound) {
		return kernelError(err)
	}
	return s.start(ctx)
}

// Exit ends the operation and drops every lock it still holds.
func (s *Session) Exit() {
	s.clearMarks()
	s.p.giveHolder(s.holder)
	s.holder = nil
}

// Writable tells whether the pool takes messages: ErrDamaged where it does not.
func (s *Session) Writable() error {
	if s.Status.Commits() {
		return nil
	}
	return s.p.unwritable(s.Status)
}

func (p *Pool) unwritable(st thinpool.PoolStatus) error {
	if outOfMetadata(st) {
		return p.metadataFull()
	}
	err := fmt.Errorf("pool %q is %s: %w", p.files.name, stateOf(st), errs.ErrDamaged)
	return errs.WithHint(err, "dmlayer pool check "+p.files.name+" says what is wrong, and with --repair has it repaired; what can be read stays readable")
}

// LockIDs takes the locks of nodes by their thin ids, in ascending order.
func (s *Session) LockIDs(ctx context.Context, ids ...metadata.ThinID) error {
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if err := s.holder.Lock(ctx, at(int64(id)), lockfile.Exclusive); err != nil {
			return fmt.Errorf("lock thin id %d: %w", id, err)
		}
	}
	return nil
}

// TryLockID takes the lock of a thin id if nobody has it.
func (s *Session) TryLockID(id metadata.ThinID) (bool, error) {
	ok, err := s.holder.TryLock(at(int64(id)), lockfile.Exclusive)
	if err != nil {
		return false, fmt.Errorf("lock thin id %d: %w", id, err)
	}
	return ok, nil
}

// CheckLocks is ErrDamaged where the run directory was cleaned under the session, so that its locks keep
// nobody out any more. What it then asks for in a transaction is seen by whoever has new ones.
func (s *Session) CheckLocks() error { return s.holder.Check() }

// UnlockID gives the lock of a thin id back.
func (s *Session) UnlockID(id metadata.ThinID) { s.unlock(int64(id)) }

// withPoolLock runs fn, which must be short, under the pool-wide lock.
func (s *Session) withPoolLock(ctx context.Context, fn func() error) error {
	if err := s.holder.Lock(ctx, at(offsetPool), lockfile.Exclusive); err != nil {
		return fmt.Errorf("pool %q: %w", s.p.files.name, err)
	}
	defer s.unlock(offsetPool)
	return fn()
}

// unlock cannot fail on a description that is open; closing it drops the lock in any case.
func (s *Session) unlock(offset int64) { _ = s.holder.Unlock(at(offset)) }
