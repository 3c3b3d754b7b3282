package metadata

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// SchemaVersion is the version of the records that this program writes. Older ones are upgraded,
// newer ones refused.
const SchemaVersion = 2

// oldestSchema is the oldest version that can be read. Version 1 had loopback backings only, and nothing about space.
const oldestSchema = 1

// bbolt's own lock polls; the caller's lock comes first and makes it free, so that this bound only
// matters when a program that is not dmlayer holds the file.
const foreignLockTimeout = 5 * time.Second

// The store is allocated in steps of this size, so that a full host file system meets a growing
// store seldom and removing always has room.
const allocationStep = 16 << 20

// Locker gives the store's lock: shared for readers, exclusive for writers. The context bounds the
// wait.
type Locker interface {
	LockStore(ctx context.Context, shared bool) (unlock func(), err error)
}

// Store is a pool's record store.
type Store struct {
	*file
	locker Locker

	single bool         // it is one holder's
	looked *unix.Stat_t // what Version has seen at the path, for the holder's next transaction
}

// New returns the store at path. Nothing is opened yet; Close it in the end.
func New(path string, locker Locker) *Store { return &Store{file: &file{path: path}, locker: locker} }

// With returns the same store with another's lock, for one of several holders in a process, who is not safe
// for concurrent use and keeps the file from being replaced between a Version and the transaction after it.
// Closing either closes both.
func (s *Store) With(locker Locker) *Store { return &Store{file: s.file, locker: locker, single: true} }

// Path returns the store's file.
func (s *Store) Path() string { return s.path }

// Create makes a store that holds the pool's record, at once or not at all. An existing store is ErrExists.
func Create(path string, pool Pool) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("create record store %s: %w", path, errs.ErrExists)
	}
	return replace("create", path, 0, func(tx *Tx) error { return tx.PutPool(pool) })
}

// replace makes the store that fn fills, of at least that version, beside its place, and renames it.
func replace(op, path string, version uint64, fn func(*Tx) error) (err error) {
	tmp := path + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s record store %s: %w", op, path, err)
	}
	defer func() {
		if err != nil {
			_ = os.Remove(tmp)
			err = fmt.Errorf("%s record store %s: %w", op, path, noSpace(err))
		}
	}()
	db, err := bbolt.Open(tmp, 0o600, options(false, nil))
	if err != nil {
		return err
	}
	err = db.Update(func(btx *bbolt.Tx) error { return fillNew(btx, fn) })
	if cerr := db.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err := raiseVersion(tmp, version); err != nil {
		return err
	}
	if err := reserve(tmp, allocationStep); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// View runs fn in a read transaction. Nothing that tx returned may be kept, but records are copies.
func (s *Store) View(ctx context.Context, fn func(tx *Tx) error) error {
	return s.transact(ctx, true, func(db *bbolt.DB) error {
		return db.View(func(btx *bbolt.Tx) error { return s.run(btx, fn) })
	})
}

// Update runs fn in a write transaction. When it returns nil, what fn wrote is on the disk; an error
// of fn, which is returned as it is, leaves the store as it was.
func (s *Store) Update(ctx context.Context, fn func(tx *Tx) error) error {
	s.updates.Add(1)
	return s.transact(ctx, false, func(db *bbolt.DB) error {
		return db.Update(func(btx *bbolt.Tx) error { return s.run(btx, fn) })
	})
}

// Updates returns how many write transactions were begun, each of which awaits two fdatasyncs: of the
// pages, and of the header that points to them.
func (s *Store) Updates() uint64 { return s.updates.Load() }

// Sync makes what a transaction may have left in the page cache durable, whose process died before it could, or
// was told that it failed. Of the header, which makes a transaction true, another sync would not be enough: the
// kernel takes a page for written that it has failed to write once, and goes on showing it.
func (s *Store) Sync(ctx context.Context) error {
	unlock, err := s.locker.LockStore(ctx, false)
	if err != nil {
		return fmt.Errorf("lock record store %s: %w", s.path, err)
	}
	defer unlock()
	f, err := os.OpenFile(s.path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("sync record store: %w", err)
	}
	defer f.Close()
	page, at, err := newestHeader(f)
	if err != nil {
		return fmt.Errorf("sync record store: %w", err)
	}
	if _, err := f.WriteAt(page, at); err != nil {
		return fmt.Errorf("sync record store: %w", failing(err))
	}
	if err := unix.Fdatasync(int(f.Fd())); err != nil {
		return fmt.Errorf("sync record store: %w", failing(&os.PathError{Op: "fdatasync", Path: s.path, Err: err}))
	}
	return nil
}

func (s *Store) transact(ctx context.Context, readOnly bool, fn func(*bbolt.DB) error) error {
	unlock, err := s.locker.LockStore(ctx, readOnly)
	if err != nil {
		return fmt.Errorf("lock record store %s: %w", s.path, err)
	}
	defer unlock()
	return failing(noSpace(s.use(readOnly, s.lookedLast(), fn)))
}

// lookedLast returns what Version has seen last, once.
func (s *Store) lookedLast() *unix.Stat_t {
	if !s.single {
		return nil
	}
	st := s.looked
	s.looked = nil
	return st
}

func (s *Store) run(btx *bbolt.Tx, fn func(*Tx) error) error {
	tx := &Tx{b: btx}
	if err := tx.checkSchema(); err != nil {
		return fmt.Errorf("record store %s: %w", s.path, err)
	}
	if btx.Writable() {
		if err := tx.upgradeSchema(); err != nil {
			return fmt.Errorf("record store %s: %w", s.path, err)
		}
	}
	if err := fn(tx); err != nil {
		return err
	}
	for _, fn := range tx.last {
		fn()
	}
	return nil
}

func options(readOnly bool, open func(string, int, os.FileMode) (*os.File, error)) *bbolt.Options {
	return &bbolt.Options{
		Timeout:      foreignLockTimeout,
		ReadOnly:     readOnly,
		FreelistType: bbolt.FreelistMapType,
		OpenFile:     open,
	}
}

// reserve allocates blocks up to size without making the file larger: bbolt maps all of a file.
func reserve(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		switch {
		case errors.Is(err, unix.EINTR): // tmpfs and xfs give up at any signal, also at those of Go's scheduler
			continue
		case errors.Is(err, unix.EOPNOTSUPP):
			return nil // the host file system cannot promise room
		case err != nil:
			return &os.PathError{Op: "fallocate", Path: path, Err: err}
		}
		return f.Sync()
	}
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func noSpace(err error) error {
	if (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, errs.ErrNoSpace) {
		return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrNoSpace), "free space on the file system of the root directory")
	}
	return err
}

// failing gives an error its class where the disk under the store fails.
func failing(err error) error {
	if (errors.Is(err, unix.EIO) || errors.Is(err, unix.EROFS)) && errs.Class(err) == nil {
		return errs.WithHint(fmt.Errorf("record store: %w: %w", err, errs.ErrDamaged),
			"the disk under the root directory fails; the kernel's log (dmesg) says which, and why")
	}
	return err
}
