package layer

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/thinpool"
)

// Store is a pool's nodes. It is safe for concurrent use, also together with other processes.
type Store struct {
	pool *pool.Pool
	log  *slog.Logger

	mu   sync.Mutex
	gone map[metadata.ThinID]bool // seen gone under their own lock; to be settled with the next write
	life uint64                   // of the pool, see enterLife

	inUse   map[metadata.ThinID]bool // removed, and found open by somebody when this process reaped last
	failing map[metadata.ThinID]bool // could not be deleted then

	recoverDue bool            // see crowd
	recoverAt  metadata.ThinID // high mark from which on it is due again

	hints hints
	edits edits

	space atomic.Pointer[pool.Space] // as the record had it when this process read it last
	quiet atomic.Uint64              // version at which the store had no tombstones; 0: not known
}

// Open opens the pool's nodes: it starts the pool if it does not run, checks that records and pool
// belong together, and finishes what dead processes left. Errors: ErrNotFound, ErrDamaged, ErrBusy,
// ErrUnsupported.
func Open(ctx context.Context, c Config) (*Store, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	p, err := pool.Open(ctx, c.Dirs, c.Pool, c.Logger)
	if err != nil {
		return nil, err
	}
	s := &Store{pool: p, log: c.Logger, gone: map[metadata.ThinID]bool{}, life: pool.LifeTag(p.Record())}
	if err := s.open(ctx); err != nil {
		_ = p.Close()
		return nil, err
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) error {
	o, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	if err := o.Pair(ctx); err != nil {
		return err
	}
	if err := o.Writable(); err != nil {
		s.log.Warn("the pool can only be read", "error", err, "hint", errs.Hint(err))
	}
	err = o.recover(ctx)
	if err != nil && ctx.Err() == nil {
		// What one leftover prevents must not keep the rest from being used.
		s.log.Warn("recovery failed in part, and is tried again later", "error", err)
		return nil
	}
	return err
}

// Close releases what Open took. Nodes stay as they are.
func (s *Store) Close() error { return s.pool.Close() }

// PoolStatus tells what the pool is and how it is.
func (s *Store) PoolStatus(ctx context.Context) (pool.Status, error) { return s.pool.Inspect(ctx) }

// Life tells how much of what a pool can have in its life is used up, as it was when the store was opened.
func (s *Store) Life() pool.Life { return s.pool.Life() }

// Devmapper returns the client that issues this store's ioctls, for those who count them.
func (s *Store) Devmapper() *devmapper.Client { return s.pool.Devmapper() }

// Cost is what a store's operations have cost so far, for those who count.
type Cost struct {
	Ioctls   uint64 // of device-mapper
	Messages uint64 // to the pool, each of which commits its metadata
	Syncs    uint64 // fdatasyncs of the record store that were waited for
	Programs uint64 // started by this process
}

// Cost returns what the operations of this store have cost since it was opened; programs are counted for
// the whole process.
func (s *Store) Cost() Cost {
	var c Cost
	for name, n := range s.pool.Devmapper().Stats() {
		c.Ioctls += n
		if name == "message" {
			c.Messages += n
		}
	}
	c.Syncs = 2 * s.pool.Updates()
	c.Programs = run.Started()
	return c
}

// op is one operation: a session with its locks.
type op struct {
	*pool.Session
	s       *Store
	version uint64 // of the store, in the last transaction
	seen    seen
	after   thinpool.PoolStatus // the last snapshot of this operation
}

func (s *Store) begin(ctx context.Context) (*op, error) {
	session, err := s.pool.Enter(ctx)
	if err != nil {
		return nil, err
	}
	o := &op{Session: session, s: s}
	if s.isCrowded() {
		if err := o.recover(ctx); err != nil {
			s.log.Warn("recovery failed, and is tried again later", "error", err)
		}
	}
	return o, nil
}

// reader begins an operation that only reads records.
func (s *Store) reader(ctx context.Context) (*op, error) {
	session, err := s.pool.Reader(ctx)
	if err != nil {
		return nil, err
	}
	return &op{Session: session, s: s}, nil
}

// hold begins an operation that only takes devices away.
func (s *Store) hold(ctx context.Context) (*op, error) {
	session, err := s.pool.Hold(ctx)
	if err != nil {
		return nil, err
	}
	return &op{Session: session, s: s}, nil
}

// beginWrite begins an operation that sends messages to the pool.
func (s *Store) beginWrite(ctx context.Context) (*op, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.Writable(); err != nil {
		o.Exit()
		return nil, err
	}
	return o, nil
}

// beginDelete is beginWrite for what takes something away: it works in a pool whose metadata writers have eaten, too.
func (s *Store) beginDelete(ctx context.Context) (*op, error) {
	o, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	err = o.MakeDeletable(ctx)
	if err == nil {
		err = o.Writable()
	}
	if err != nil {
		o.Exit()
		return nil, err
	}
	return o, nil
}

// beginCreate is beginWrite for what will need new blocks.
func (s *Store) beginCreate(ctx context.Context) (*op, error) {
	o, err := s.beginWrite(ctx)
	if err != nil {
		return nil, err
	}
	if err := o.admit(ctx); err != nil {
		o.Exit()
		return nil, err
	}
	return o, nil
}

// view runs fn in a read transaction.
func (o *op) view(ctx context.Context, fn func(tx *metadata.Tx) error) error {
	return o.Records.View(ctx, func(tx *metadata.Tx) error {
		o.version = tx.Version()
		o.s.hints.saw(o.version)
		return fn(tx)
	})
}

// update runs fn in a durable transaction, which also settles what was seen gone before.
func (o *op) update(ctx context.Context, fn func(tx *metadata.Tx) error) error {
	return o.settling(ctx, o.Records.Update, fn)
}

// updateTogether is update in one transaction with those of other operations that come to it at the same time. fn may run more than once.
func (o *op) updateTogether(ctx context.Context, fn func(tx *metadata.Tx) error) error {
	return o.settling(ctx, o.Records.UpdateTogether, fn)
}

func (o *op) settling(ctx context.Context, update func(context.Context, func(*metadata.Tx) error) error, fn func(tx *metadata.Tx) error) error {
	var gone map[metadata.ThinID]bool
	var low, high metadata.ThinID
	var version uint64
	var tombs bool
	if err := o.mayWrite(); err != nil {
		return err
	}
	err := update(ctx, func(tx *metadata.Tx) error {
		version = tx.Version()
		if err := o.CheckLocks(); err != nil {
			return err
		}
		if err := fn(tx); err != nil {
			return err
		}
		record, err := tx.Pool()
		if err != nil {
			return err
		}
		o.s.enterLife(record)
		o.s.space.Store(&record.Space)
		gone = o.s.seenGone()
		low, high, err = settle(tx, gone)
		tx.Last(func() { tombs = tx.HasTombstones() }) // of others, too
		return err
	})
	if err == nil {
		o.version = version
		o.s.noteTombstones(version, tombs)
		o.s.hints.wrote(version)
		o.s.forgetBelow(low, gone)
		o.s.crowd(low, high)
	}
	return err
}

// settle drops the tombstones of ids that are gone, and moves the low mark up over ids that are named
// or gone. All of them have been handed out, so the mark stays below the cursor.
func settle(tx *metadata.Tx, gone map[metadata.ThinID]bool) (low, high metadata.ThinID, err error) {
	for id := range gone {
		if err := tx.DropTombstone(id); err != nil {
			return 0, 0, err
		}
	}
	r, err := tx.Pool()
	if err != nil {
		return 0, 0, err
	}
	if r.State != metadata.PoolReady {
		return 0, 0, fmt.Errorf("pool %q is being destroyed: %w", r.Name, errs.ErrNotFound)
	}
	low = r.LowID
	for low < r.HighID && (gone[low] || tx.Named(low)) {
		low++
	}
	if low == r.LowID {
		return low, r.HighID, nil
	}
	r.LowID = low
	return low, r.HighID, tx.PutPool(r)
}

// maxInFlight is how many ids between the marks are no reason to look at them.
const maxInFlight = 128

// crowd sees to it that a process that lives long looks now and then at what is between the marks: what
// other processes have cleaned up it does not know, and the low mark does not pass it.
func (s *Store) crowd(low, high metadata.ThinID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if high-low > maxInFlight && high >= s.recoverAt {
		s.recoverDue, s.recoverAt = true, high+maxInFlight
	}
}

// isCrowded tells, once, that it is time for that.
func (s *Store) isCrowded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	due := s.recoverDue
	s.recoverDue = false
	return due
}

func (s *Store) markGone(id metadata.ThinID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone[id] = true
}

func (s *Store) seenGone() map[metadata.ThinID]bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.gone)
}

// enterLife forgets what was seen of thin ids before the pool was renewed: they are others' now.
func (s *Store) enterLife(record metadata.Pool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if life := pool.LifeTag(record); life != s.life {
		s.life, s.recoverAt, s.failing = life, 0, nil
		clear(s.gone)
	}
}

func (s *Store) forgetBelow(low metadata.ThinID, settled map[metadata.ThinID]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range settled {
		if id < low {
			delete(s.gone, id)
		}
	}
}

// undoing runs an undo and joins its error with the cause's.
func undoing(ctx context.Context, cause error, undo func(ctx context.Context) error) error {
	ctx, cancel := pool.UndoContext(ctx)
	defer cancel()
	if err := undo(ctx); err != nil {
		// As text: the error's class is the cause's.
		return fmt.Errorf("%w (undoing it: %s)", cause, err.Error())
	}
	return cause
}

// blobDir is the folder of a node's side files.
func (s *Store) blobDir(id metadata.ThinID) string {
	return filepath.Join(s.pool.BlobDir(), strconv.FormatUint(uint64(id), 10))
}

func (s *Store) blobPath(id metadata.ThinID, kind string) string {
	return filepath.Join(s.blobDir(id), kind)
}

func opError(op, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %q: %w", op, name, pool.KernelError(err))
}
