package pool

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointBackupWritten = fault.New("pool.backup.written")
	pointBackupNamed   = fault.New("pool.backup.named")
)

// keptBackups is how many backups of a pool's records are kept.
const keptBackups = 10

// backupInterval is the least time between backups that are made on the way. What stop makes is not bound
// by it.
const backupInterval = time.Minute

// A backup's name says when it was taken and of which version of the store it is, so that nothing has to be read to
// know whether another is due.
const backupTime = "20060102T150405.000Z"

// Backup is a copy of a pool's records outside the pool.
type Backup struct {
	Path    string
	Taken   time.Time
	Version uint64 // of the record store
}

// backupDir is the folder of a pool's backups. The UUID keeps the backups of a pool that is gone from those of one that
// has its name now.
func (f files) backupDir(uuid string) string {
	return filepath.Join(f.backups(), f.name+"-"+uuid)
}

// listBackups returns the backups in a folder, the oldest first: by the version of the store, which only rises, since the clock may have
// been wrong. What is no backup by its name is nobody's business.
func listBackups(dir string) ([]Backup, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list backups: %w", err)
	}
	var list []Backup
	for _, e := range entries {
		if b, ok := parseBackupName(e.Name()); ok {
			b.Path = filepath.Join(dir, e.Name())
			list = append(list, b)
		}
	}
	slices.SortFunc(list, func(a, b Backup) int { return cmp.Or(cmp.Compare(a.Version, b.Version), a.Taken.Compare(b.Taken)) })
	return list, nil
}

func backupName(c *metadata.Copy) string {
	return c.Taken.UTC().Format(backupTime) + "-" + strconv.FormatUint(c.Version, 10)
}

func parseBackupName(name string) (Backup, bool) {
	when, version, _ := strings.Cut(name, "-")
	taken, err := time.Parse(backupTime, when)
	if err != nil {
		return Backup{}, false
	}
	n, err := strconv.ParseUint(version, 10, 64)
	return Backup{Taken: taken, Version: n}, err == nil
}

// BackupDue tells, without reading anything, whether the records have changed since the last backup and that is long
// enough ago.
func (p *Pool) BackupDue() (bool, error) {
	list, err := listBackups(p.files.backupDir(p.record.UUID))
	if err != nil || len(list) == 0 {
		return err == nil, err
	}
	last := list[len(list)-1]
	version, err := p.records.Version()
	if err != nil || version == last.Version {
		return false, err
	}
	age := time.Since(last.Taken)
	return age < 0 || age >= backupInterval, nil // the clock may have been set back
}

// writeBackup adds a backup, whole or not at all, and takes the oldest away.
func (p *Pool) writeBackup(text []byte, c *metadata.Copy) (err error) {
	dir := p.files.backupDir(p.record.UUID)
	defer func() {
		if err != nil {
			err = fmt.Errorf("back up the records of pool %q to %s: %w", p.files.name, dir, noSpace(err))
		}
	}()
	if err := makeDirs(dir); err != nil {
		return err
	}
	unfinished := filepath.Join(dir, "unfinished")
	if err := writeSynced(unfinished, text); err != nil {
		return errors.Join(err, removeFiles(unfinished))
	}
	if err := pointBackupWritten.Hit(); err != nil {
		return err
	}
	if err := os.Rename(unfinished, filepath.Join(dir, backupName(c))); err != nil {
		return err
	}
	if err := fsutil.SyncDir(dir); err != nil {
		return err
	}
	if err := pointBackupNamed.Hit(); err != nil {
		return err
	}
	return rotate(dir)
}

func writeSynced(path string, text []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Sync(), f.Close())
}

func rotate(dir string) error {
	list, err := listBackups(dir)
	if err != nil || len(list) <= keptBackups {
		return err
	}
	for _, b := range list[:len(list)-keptBackups] {
		if err := removeFiles(b.Path); err != nil {
			return err
		}
	}
	return nil
}

// removeBackups takes the backups of a pool that is destroyed away.
func (p *Pool) removeBackups() error {
	dir := p.files.backupDir(p.record.UUID)
	list, err := listBackups(dir)
	if err != nil {
		return err
	}
	for _, b := range list {
		if err := removeFiles(b.Path); err != nil {
			return err
		}
	}
	if err := removeFiles(filepath.Join(dir, "unfinished")); err != nil {
		return err
	}
	_ = os.Remove(dir) // what we did not make stays, and its folder with it
	return nil
}

// noSpace gives a full file system its class.
func noSpace(err error) error {
	if errs.Class(err) == nil && (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) {
		return errs.WithHint(fmt.Errorf("%w: %w", err, errs.ErrNoSpace), "free space on that file system")
	}
	return err
}
