package layer_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// backupsOf returns a pool's backups, the oldest first.
func backupsOf(e *pooltest.Env) ([]string, error) {
	return filepath.Glob(filepath.Join(e.Dirs.Root, "backups", e.Name+"-*", "2*-*"))
}

// backedUp tells whether the newest backup has a node. All of them must be whole.
func backedUp(e *pooltest.Env, node string) (bool, error) {
	files, err := backupsOf(e)
	if err != nil {
		return false, err
	}
	found := false
	for _, path := range files {
		c, err := readCopy(path)
		if err != nil {
			return false, fmt.Errorf("%s: %w", path, err)
		}
		found = slices.ContainsFunc(c.Nodes, func(n metadata.Node) bool { return n.Name == node })
	}
	return found, nil
}

func readCopy(path string) (*metadata.Copy, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return metadata.ReadCopy(f)
}

// A backup is made when the records have changed and the last is old enough, and leaves no device. It costs no
// transaction of the store.
func TestBackupIfDue(t *testing.T) {
	e := pooltest.New(t, smallPool)
	ctx := pooltest.Context(t)
	s := e.Open(t)
	count := func() int {
		files, err := backupsOf(e)
		must(t, err)
		return len(files)
	}
	age := func() { // makes the newest backup one of an hour ago
		files, err := backupsOf(e)
		must(t, err)
		newest := files[len(files)-1]
		const length = len("20060102T150405.000Z")
		past := time.Now().UTC().Add(-time.Hour).Format("20060102T150405.000Z")
		must(t, os.Rename(newest, filepath.Join(filepath.Dir(newest), past+filepath.Base(newest)[length:])))
	}
	due := func(want int, why string) {
		t.Helper()
		before := s.Cost()
		must(t, s.BackupIfDue(ctx))
		if n := count(); n != want {
			t.Errorf("%s: %d backups, want %d", why, n, want)
		}
		if after := s.Cost(); after.Syncs != before.Syncs || after.Programs != before.Programs || after.Messages != before.Messages {
			t.Errorf("%s: it cost %+v after %+v", why, after, before)
		}
		if _, err := s.Devmapper().Info(devmapper.ByUUID(e.DeviceUUID(ctx, 0))); err == nil {
			t.Errorf("%s: the label's device is active", why)
		}
	}
	makeLayer(t, s, "base", "", baseFiles)
	due(1, "the first")
	due(1, "nothing has changed")
	makeSnapshot(t, s, "a", "base")
	due(1, "the last is young")
	age()
	due(2, "changed, and the last is old")
	age()
	due(2, "nothing has changed again")
	if ok, err := backedUp(e, "a"); !ok || err != nil {
		t.Errorf("the newest has the newest node: %v, %v", ok, err)
	}
}

// Many processes that back up at once, while others work, keep out of each other's way.
func TestBackupsTogether(t *testing.T) {
	e := pooltest.New(t, smallPool)
	ctx := pooltest.Context(t)
	makeLayer(t, e.Open(t), "base", "", baseFiles)
	done := make(chan error)
	for i := range 4 {
		go func() {
			s, err := layer.Open(ctx, e.Config())
			if err != nil {
				done <- err
				return
			}
			for k := 0; k < 5 && err == nil; k++ {
				if i%2 == 0 {
					err = s.Backup(ctx)
					continue
				}
				name := fmt.Sprintf("s%d-%d", i, k)
				if _, err = s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Parent: "base"}); err == nil && k%2 == 0 {
					err = s.Remove(ctx, name)
				}
			}
			if cerr := s.Close(); err == nil {
				err = cerr
			}
			done <- err
		}()
	}
	for range 4 {
		must(t, <-done)
	}
	must(t, e.CheckLive(ctx))
	if _, err := backedUp(e, "base"); err != nil {
		t.Error(err)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	must(t, os.Remove(e.Store()))
	_, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
	must(t, err)
}
