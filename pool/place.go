package pool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// placeMark is a file that tells which folder the running pool belongs to: of two that describe the same disks one is a copy.
func (f files) placeMark(uuid string) string { return filepath.Join(f.state(uuid), "place") }

// placeID is what stays the same of a folder whatever leads there.
func placeID(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return fmt.Sprintf("%x-%x", st.Dev, st.Ino), nil
}

// markPlace writes what the folder is, and where, for people and for an import.
func (f files) markPlace(uuid string) error {
	id, err := placeID(f.dir())
	if err != nil {
		return err
	}
	if err := makeDirs(f.state(uuid)); err != nil {
		return err
	}
	return os.WriteFile(f.placeMark(uuid), []byte(id+" "+f.dir()), 0o600)
}

// takeOver is ErrBusy while a pool that runs belongs to another folder that is there, or that nobody can tell. One whose folder is gone is
// made this folder's.
func (f files) takeOver(uuid string) error {
	mark, err := os.ReadFile(f.placeMark(uuid))
	if errors.Is(err, os.ErrNotExist) {
		err := fmt.Errorf("pool %s runs, and nothing in %s tells for which folder: %w", uuid, f.dirs.Run, errs.ErrBusy)
		return errs.WithHint(err, "stop it where it runs, or name its run directory with --run; where both are lost, restart the machine")
	}
	if err != nil {
		return err
	}
	id, dir, _ := strings.Cut(string(mark), " ")
	if now, err := placeID(dir); err == nil && now == id && dir != f.dir() {
		err := fmt.Errorf("the pool runs, for %s: %w", dir, errs.ErrBusy)
		return errs.WithHint(err, "stop it there first")
	}
	return f.markPlace(uuid)
}
