package vmexec

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// runDirPattern is where runs have their private folders: in /tmp and not in $TMPDIR, because UML's
// control socket allows only a short path.
const (
	runDirParent  = "/tmp"
	runDirPattern = "dmlayer-vm-run-"
)

// makeRunDir makes a private folder. Whoever holds the returned lock, this process or the reaper,
// uses the folder; nobody does when both were killed, and then the next run removes it.
func makeRunDir(slots string) (dir string, lock *os.File, err error) {
	// Between making a folder and locking it nobody may sweep.
	making, err := os.Open(slots)
	if err != nil {
		return "", nil, err
	}
	defer making.Close()
	if err := flock(making, unix.LOCK_SH); err != nil {
		return "", nil, err
	}
	if dir, err = os.MkdirTemp(runDirParent, runDirPattern); err != nil {
		return "", nil, err
	}
	if lock, err = os.Open(dir); err == nil {
		if err = flock(lock, unix.LOCK_EX); err != nil {
			_ = lock.Close()
		}
	}
	if err != nil {
		_ = os.Remove(dir)
		return "", nil, err
	}
	return dir, lock, nil
}

// sweepRunDirs removes what runs left whose processes were all killed.
func sweepRunDirs(slots string) error {
	sweeping, err := os.Open(slots)
	if err != nil {
		return err
	}
	defer sweeping.Close()
	if err := flock(sweeping, unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil // the next run will do it
	} else if err != nil {
		return err
	}
	dirs, err := filepath.Glob(filepath.Join(runDirParent, runDirPattern+"*"))
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		if err := removeUnused(dir); err != nil {
			return fmt.Errorf("remove what a killed run left: %w", err)
		}
	}
	return nil
}

func removeUnused(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return nil // another user's, or just removed
	}
	defer f.Close()
	if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil // in use
	}
	return os.RemoveAll(dir)
}

func flock(f *os.File, how int) error {
	for {
		err := unix.Flock(int(f.Fd()), how)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %s: %w", f.Name(), err)
		}
	}
}
