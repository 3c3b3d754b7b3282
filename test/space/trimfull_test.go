package space

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Somebody fills a pool, deletes to make room, also what had been durable for long, and trims. A file system that could not write down that
// it was deleted still has it after the next mount: then it is what it was. The answers say what brings the file system back, and that does.
func TestTrimAfterFull(t *testing.T) {
	each(t, pool.Spec{DataSize: 72 * mib, BaseSize: 1024 * mib, Space: pool.Space{MinFree: -1}}, func(t *testing.T, e *place, s *layer.Store) {
		ctx := pooltest.Context(t)
		const size = 16 * mib
		snapshot(t, s, "a", "")
		dir := mount(t, s, "a")
		kept, fill := filepath.Join(dir, "kept"), filepath.Join(dir, "fill")
		must(t, writeFile(kept, 1, size))
		must(t, fsutil.SyncFS(dir))
		if err := writeFile(fill, 2, 160*mib); !isNoRoom(err) {
			t.Fatalf("filled up: %v", err)
		}
		for _, path := range []string{fill, kept} {
			if err := os.Remove(path); err != nil && !isNoRoom(err) {
				t.Fatal(err)
			}
		}
		stopped := false
		for range 2 {
			trimmed, err := s.Trim(ctx, "a")
			t.Logf("trimmed %d, %v", trimmed, err)
			stopped = err != nil
			wantWayOut(t, e, err)
		}
		unmount(t, s, "a")
		for range 2 {
			_, err := s.Fsck(ctx, "a", false)
			t.Logf("checked: %v", err)
			wantWayOut(t, e, err)
		}
		if stopped {
			_, err := pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Data: pool.Extent{Bytes: 32 * mib, More: true}})
			must(t, err)
		}
		_, err := s.Fsck(ctx, "a", true)
		must(t, err)
		mount(t, s, "a")
		if _, err := os.Stat(kept); err == nil {
			wantContent(t, kept, 1, size)
		} else if !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
		trimmed(t, s, "a")
		unmount(t, s, "a")
		wantSound(t, s, "a")
	})
}

// wantWayOut looks for the way out in the answer of a command that a full pool kept from its end.
func wantWayOut(t testing.TB, e *place, err error) {
	t.Helper()
	if err == nil {
		return
	}
	class, step := layer.ErrDamaged, "dmlayer fsck --repair a"
	if status(t, e).State == pool.StateOutOfDataSpace {
		class, step = layer.ErrNoSpace, "dmlayer pool extend"
	}
	mustFail(t, err, class)
	if !strings.Contains(errs.Hint(err), step) {
		t.Errorf("%v: hint %q does not name %q", err, errs.Hint(err), step)
	}
}

// An ext4 that ran into errors is repaired before it is used again. On a full pool that cannot be done, and each command that would says
// that there must be room first, instead of sending from one to the other.
func TestRepairOnFull(t *testing.T) {
	ctx := pooltest.Context(t)
	e := newPlace(t, "loopback", pool.Spec{FS: "ext4", DataSize: 24 * mib, BaseSize: 64 * mib, Space: pool.Space{MinFree: -1}})
	s := e.Open(t)
	snapshot(t, s, "origin", "")
	must(t, writeFile(filepath.Join(mount(t, s, "origin"), "f"), 1, mib))
	info, err := s.Inspect(ctx, "origin")
	must(t, err)
	must(t, os.WriteFile(filepath.Join("/sys/fs/ext4", filepath.Base(info.Device), "trigger_fs_error"), []byte("test"), 0))
	unmount(t, s, "origin")
	snapshot(t, s, "a", "origin")                                                            // whatever is written to it takes a block, its superblock too
	_, err = s.Mount(ctx, "a", "", layer.MountOptions{Options: []string{"noatime,discard"}}) // the kernel discards what it failed to delete
	mustFail(t, err, layer.ErrInvalid)
	snapshot(t, s, "writer", "")
	if err := fill(mount(t, s, "writer")); !isNoRoom(err) {
		t.Fatalf("filled up: %v", err)
	}
	unmount(t, s, "writer")
	for what, do := range map[string]func() error{
		"check":  func() error { _, err := s.Fsck(ctx, "a", false); return err },
		"repair": func() error { _, err := s.Fsck(ctx, "a", true); return err },
		"mount":  func() error { _, err := s.Mount(ctx, "a", "", layer.MountOptions{}); return err },
	} {
		err := do()
		if hint := errs.Hint(err); !errors.Is(err, layer.ErrNoSpace) || !strings.Contains(hint, "dmlayer pool extend") || !strings.Contains(hint, "dmlayer fsck --repair a") {
			t.Errorf("%s: %v, hint %q", what, err, hint)
		}
	}
	_, err = pool.Extend(ctx, e.Dirs, e.Name, pool.Extension{Data: pool.Extent{Bytes: 8 * mib, More: true}})
	must(t, err)
	_, err = s.Fsck(ctx, "a", true)
	must(t, err)
	wantContent(t, filepath.Join(mount(t, s, "a"), "f"), 1, mib)
	unmount(t, s, "a")
	wantSound(t, s, "a")
}
