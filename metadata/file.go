package metadata

import (
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// file is the opened bbolt file, kept from one transaction to the next because opening it costs more
// than a transaction does. What bbolt keeps in memory is right for one version of the file, so it is
// opened anew when the version has changed; and bbolt's own lock, which others poll for, is only held
// while a transaction runs.
type file struct {
	path string

	mu       sync.Mutex // held while a transaction of this process runs
	db       *bbolt.DB
	file     *os.File // of db
	id       fileID
	readOnly bool
	version  uint64 // that db's memory belongs to

	updates  atomic.Uint64
	together together
}

type fileID struct{ dev, ino uint64 }

// Close closes the file. The next transaction opens it again.
func (f *file) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.close()
}

func (f *file) close() error {
	if f.db == nil {
		return nil
	}
	db := f.db
	f.db = nil
	if err := db.Close(); err != nil {
		return fmt.Errorf("close record store %s: %w", f.path, err)
	}
	return nil
}

// use runs fn on the opened file, with the caller's lock held. The panics and faults with which bbolt
// meets damaged pages become errors: the file is foreign bytes.
func (f *file) use(readOnly bool, looked *unix.Stat_t, fn func(*bbolt.DB) error) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			f.abandon()
			err = errs.WithHint(fmt.Errorf("record store %s: its pages make no sense (%v): %w", f.path, r, errs.ErrDamaged), damagedHint)
		}
	}()
	if err := f.ready(readOnly, looked); err != nil {
		return err
	}
	err = fn(f.db)
	if err != nil && !readOnly {
		return errors.Join(err, f.close()) // bbolt may have given up in the middle of a commit
	}
	f.version = versionOf(f.db)
	_ = unix.Flock(int(f.file.Fd()), unix.LOCK_UN)
	return err
}

// abandon gives up a file on which bbolt panicked. Its own Close might wait for a lock that bbolt panicked
// with, so only the file is closed; and the mapping, which nobody can take away any more, would keep the
// file's lock.
func (f *file) abandon() {
	f.db = nil
	if f.file != nil {
		_ = unix.Flock(int(f.file.Fd()), unix.LOCK_UN)
		_ = f.file.Close()
		f.file = nil
	}
}

// damagedHint says what helps against a file that bbolt cannot make sense of.
const damagedHint = "dmlayer pool import of the pool's folder brings the newest copy of the records back; the data is untouched"

// ready makes sure that the file is open, locked, the one at the path, and that bbolt's memory is of its
// present version. looked, unless nil, is what the path led to a moment ago.
func (f *file) ready(readOnly bool, looked *unix.Stat_t) error {
	var st unix.Stat_t
	if looked != nil {
		st = *looked
	} else if err := unix.Stat(f.path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			err = errs.ErrNotFound // and bbolt would create it
		}
		return fmt.Errorf("open record store %s: %w", f.path, err)
	}
	if !readOnly {
		if err := f.extend(st); err != nil {
			return err
		}
	}
	id := fileID{uint64(st.Dev), st.Ino}
	if f.db != nil && f.id == id && (readOnly || !f.readOnly) {
		how := unix.LOCK_EX
		if readOnly {
			how = unix.LOCK_SH
		}
		if unix.Flock(int(f.file.Fd()), how|unix.LOCK_NB) == nil && versionOf(f.db) == f.version {
			return nil
		}
	}
	if err := f.close(); err != nil {
		return err
	}
	return f.open(readOnly, id)
}

func (f *file) open(readOnly bool, id fileID) error {
	if err := lookWhole(f.path); err != nil {
		return err
	}
	db, err := bbolt.Open(f.path, 0o600, options(readOnly, func(path string, flag int, mode os.FileMode) (_ *os.File, err error) {
		f.file, err = os.OpenFile(path, flag&^os.O_CREATE, mode)
		return f.file, err
	}))
	if err != nil {
		return f.openError(err)
	}
	f.db, f.id, f.readOnly = db, id, readOnly
	return nil
}

// lookWhole is ErrDamaged where a store is shorter than its last transaction left it. bbolt would read pages that are not there, and in an empty
// file make a new store.
func lookWhole(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		err = errs.ErrNotFound
	}
	if err != nil {
		return fmt.Errorf("open record store %s: %w", path, err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open record store: %w", err)
	}
	least := 2 * int64(os.Getpagesize())
	if header, _, err := newestHeader(f); err == nil { // else bbolt says what is wrong with it
		least = pagesOf(header) * int64(len(header))
	}
	if st.Size() < least {
		return errs.WithHint(fmt.Errorf("open record store %s: it is cut off: %d bytes of at least %d: %w", path, st.Size(), least, errs.ErrDamaged), damagedHint)
	}
	return nil
}

func (f *file) openError(err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return errs.WithHint(fmt.Errorf("open record store %s: another program holds it: %w", f.path, errs.ErrBusy),
			"end the program that has the file open (fuser "+f.path+")")
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return errs.WithHint(fmt.Errorf("open record store %s: %w: %w", f.path, err, errs.ErrDamaged),
			damagedHint)
	}
	return fmt.Errorf("open record store %s: %w", f.path, err)
}

// extend keeps blocks allocated behind the end of the file for the transactions to come.
func (f *file) extend(st unix.Stat_t) error {
	if st.Blocks*512 >= st.Size+allocationStep/4 {
		return nil
	}
	// Without room the transaction may still fit; if it does not, it says so.
	if err := reserve(f.path, st.Size+allocationStep); err != nil && !errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("extend record store %s: %w", f.path, err)
	}
	return nil
}

// mappedVersion reads the version where the file is mapped and no transaction of this process runs, and is
// 0 otherwise, also where another file has taken the place of the mapped one. st is filled in with what the path leads to
// where the version is not 0.
func (f *file) mappedVersion(st *unix.Stat_t) (version uint64) {
	if !f.mu.TryLock() {
		return 0
	}
	defer f.mu.Unlock()
	if f.db == nil {
		return 0
	}
	if unix.Stat(f.path, st) != nil || f.id != (fileID{uint64(st.Dev), st.Ino}) {
		return 0
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if r := recover(); r != nil {
			f.abandon()
			version = 0 // damaged; whoever opens it will say so
		}
	}()
	return versionOf(f.db)
}

// versionOf returns the version of the file as it is now, which is mapped: it need not be the one that
// bbolt's memory belongs to.
func versionOf(db *bbolt.DB) (version uint64) {
	_ = db.View(func(tx *bbolt.Tx) error {
		version = uint64(tx.ID())
		return nil
	})
	return version
}
