package pool_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A disk that begins like the one that is looked for is not taken for it: neither undo nor destroy comes to its end without the pool's own.
func TestDeviceLookAlikes(t *testing.T) {
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	third := pooltest.NewLoopDisk(t, rawSize, 0)
	for _, d := range []*pooltest.LoopDisk{r.meta, third} {
		must(t, fsutil.Mkfs(ctx, d.Path, fsutil.MkfsOptions{Type: fsutil.Ext4}))
	}
	before := read(t, r.meta)
	dying(t, "pool.create.disks-cleared", func() error { return r.create(r.data.Path, r.meta.Path, true) })
	r.meta.Detach(t)
	_, err := pool.Inspect(ctx, r.dirs, "raw")
	said(t, err, errs.ErrDamaged, "metadata device")
	r.meta.Attach(t)
	_, err = pool.Inspect(ctx, r.dirs, "raw")
	mustFail(t, err, errs.ErrNotFound)
	unchanged(t, "undo", r.meta, before)

	must(t, r.create(r.data.Path, r.meta.Path, true))
	fault.Set(func(p string) error {
		if p == "pool.destroy.devices" {
			return errDied
		}
		return nil
	})
	err = pool.Destroy(ctx, r.dirs, "raw")
	fault.Set(nil)
	mustFail(t, err, errDied)
	r.meta.Detach(t)
	_, err = pool.Inspect(ctx, r.dirs, "raw")
	said(t, err, errs.ErrDamaged, "metadata device")
	r.meta.Attach(t)
	_, err = pool.Inspect(ctx, r.dirs, "raw")
	mustFail(t, err, errs.ErrNotFound)
	for _, d := range []*pooltest.LoopDisk{r.data, r.meta} {
		if found, err := fsutil.Probe(d.Path); err != nil || len(found) > 0 {
			t.Errorf("left on %s: %v, %v", d.Path, found, err)
		}
	}
	if left := leftOf(t, r.dirs); len(left) > 0 {
		t.Errorf("left %v", left)
	}
}

// Of two copies of a disk none is taken, though somebody looks at one of them at that moment.
func TestDeviceCopyNeverTaken(t *testing.T) {
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	must(t, r.create(r.data.Path, r.meta.Path, false))
	must(t, pool.Stop(ctx, r.dirs, "raw"))
	third := pooltest.NewLoopDisk(t, rawSize, 0)
	third.Detach(t)
	must(t, pooltest.CopySparse(r.data.File, third.File+".new"))
	must(t, os.Rename(third.File+".new", third.File))
	third.Attach(t)
	for _, busy := range []string{"", r.data.Path, third.Path} {
		if busy == "" {
			said(t, pool.Start(ctx, r.dirs, "raw"), errs.ErrDamaged, r.data.Path, third.Path)
			continue
		}
		f, err := fsutil.OpenExclusive(busy, false)
		must(t, err)
		said(t, pool.Start(ctx, r.dirs, "raw"), errs.ErrDamaged, r.data.Path, third.Path)
		must(t, f.Close())
	}
	third.Detach(t)
	must(t, pool.Destroy(ctx, r.dirs, "raw"))
}

// An import takes no folder of another pool, though the records of that are lost or cannot be read.
func TestDeviceImportOver(t *testing.T) {
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	folder := filepath.Join(r.dirs.Root, "pools", "raw")
	must(t, r.create(r.data.Path, r.meta.Path, false))
	must(t, pool.Stop(ctx, r.dirs, "raw"))
	must(t, os.RemoveAll(folder))
	must(t, pool.Create(ctx, r.dirs, pool.Spec{Name: "raw", DataSize: 64 << 20, BaseSize: 16 << 20}))
	must(t, pool.Stop(ctx, r.dirs, "raw"))
	store := filepath.Join(folder, "records.db")
	refused := func(what string) {
		t.Helper()
		before := strings.Join(leftOf(t, r.dirs), " ")
		_, err := pool.Import(ctx, r.dirs, pool.ImportOptions{Devices: []string{r.meta.Path}})
		if !errors.Is(err, errs.ErrExists) || !strings.Contains(errs.Hint(err), "--name") {
			t.Errorf("%s: %v", what, err)
		}
		if now := strings.Join(leftOf(t, r.dirs), " "); now != before {
			t.Errorf("%s: the folder has %s, before %s", what, now, before)
		}
	}
	refused("of another pool")
	must(t, os.Rename(store, store+".kept"))
	refused("records lost")
	must(t, os.WriteFile(store, []byte("no records"), 0o600))
	refused("records damaged")
	must(t, os.Rename(store+".kept", store))
	_, err := pool.Import(ctx, r.dirs, pool.ImportOptions{Devices: []string{r.meta.Path}, Name: "two"})
	must(t, err)
	must(t, pool.Destroy(ctx, r.dirs, "two"))
	must(t, pool.Destroy(ctx, r.dirs, "raw"))

	// Side files alone: nobody can tell whose they are.
	must(t, r.create(r.data.Path, r.meta.Path, false))
	must(t, pool.Stop(ctx, r.dirs, "raw"))
	must(t, os.RemoveAll(folder))
	must(t, os.MkdirAll(filepath.Join(folder, "blobs", "7"), 0o700))
	must(t, os.RemoveAll(filepath.Join(r.dirs.Root, "backups")))
	refused("side files")
	must(t, os.RemoveAll(folder))
	_, err = pool.Import(ctx, r.dirs, pool.ImportOptions{Devices: []string{r.meta.Path}})
	must(t, err)
	must(t, pool.Destroy(ctx, r.dirs, "raw"))
}
