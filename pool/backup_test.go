package pool

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/metadata"
)

func copyAt(taken time.Time, version uint64) *metadata.Copy {
	return &metadata.Copy{Taken: taken, Version: version}
}

func TestBackupsRotate(t *testing.T) {
	p := testSession(t).p
	dir := p.files.backupDir(p.record.UUID)
	must(t, makeDirs(dir))
	must(t, os.WriteFile(filepath.Join(dir, "unfinished"), []byte("of a process that died"), 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "mine"), nil, 0o600))
	start := time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)
	for i := range 2 * keptBackups {
		must(t, p.writeBackup([]byte(fmt.Sprint(i)), copyAt(start.Add(time.Duration(i)*time.Second), uint64(i))))
	}
	list, err := listBackups(dir)
	must(t, err)
	if len(list) != keptBackups {
		t.Fatalf("%d are kept", len(list))
	}
	for i, b := range list {
		text, err := os.ReadFile(b.Path)
		must(t, err)
		if want := i + keptBackups; string(text) != fmt.Sprint(want) || b.Version != uint64(want) {
			t.Errorf("backup %d: %+v with %q", i, b, text)
		}
	}
	if entries, _ := os.ReadDir(dir); len(entries) != keptBackups+1 {
		t.Errorf("left: %v", entries)
	}
	must(t, p.removeBackups())
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("what is not ours: %v, %v", entries, err)
	}
}

// A clock that was ahead once does not have the backups that come after it taken for old ones.
func TestBackupsOfWrongClock(t *testing.T) {
	p := testSession(t).p
	dir := p.files.backupDir(p.record.UUID)
	future := time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)
	for i := range keptBackups {
		must(t, p.writeBackup(nil, copyAt(future.Add(time.Duration(i)*time.Second), uint64(i))))
	}
	must(t, p.writeBackup(nil, copyAt(future.AddDate(-14, 0, 0), 100)))
	list, err := listBackups(dir)
	must(t, err)
	if last := list[len(list)-1]; len(list) != keptBackups || last.Version != 100 {
		t.Errorf("the last of %d is %+v", len(list), last)
	}
}

func TestBackupDue(t *testing.T) {
	p := testSession(t).p
	must(t, makeDirs(p.files.dir()))
	must(t, metadata.Create(p.files.store(), p.record))
	p.records = metadata.New(p.files.store(), unlocked{})
	t.Cleanup(func() { _ = p.records.Close() })
	version, err := p.records.Version()
	must(t, err)
	dir := p.files.backupDir(p.record.UUID)
	for _, c := range []struct {
		what    string
		age     time.Duration
		version uint64
		due     bool
	}{
		{"unchanged", time.Hour, version, false},
		{"changed and old", time.Hour, version - 1, true},
		{"changed just now", 0, version - 1, false},
		{"from the future", -time.Hour, version - 1, true},
	} {
		must(t, os.RemoveAll(dir))
		if due, err := p.BackupDue(); !due || err != nil {
			t.Fatalf("without any: %v, %v", due, err)
		}
		must(t, p.writeBackup(nil, copyAt(time.Now().Add(-c.age), c.version)))
		if due, err := p.BackupDue(); due != c.due || err != nil {
			t.Errorf("%s: %v, %v", c.what, due, err)
		}
	}
}

func TestBackupNames(t *testing.T) {
	c := copyAt(time.Date(2026, 1, 2, 3, 4, 5, 678e6, time.UTC), 9)
	b, ok := parseBackupName(backupName(c))
	if !ok || !b.Taken.Equal(c.Taken) || b.Version != c.Version {
		t.Errorf("%q is %+v, %v", backupName(c), b, ok)
	}
	for _, name := range []string{"", "-", "unfinished", "20260102T030405.678Z", "20260102T030405.678Z-", "20260102T030405.678Z-x", "20260102T030405.678Z--1", "x-1"} {
		if b, ok := parseBackupName(name); ok {
			t.Errorf("%q is %+v", name, b)
		}
	}
}

func TestBackupDirectory(t *testing.T) {
	f := files{dirs: Dirs{Root: "/r"}, name: "p"}
	if got := f.backupDir("u"); got != "/r/backups/p-u" {
		t.Error(got)
	}
	f.dirs.Backups = "/b"
	if got := f.backupDir("u"); got != "/b/p-u" {
		t.Error(got)
	}
}
