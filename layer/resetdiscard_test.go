package layer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A reset takes no longer for all that was written: it discards no more than a Reap does in one go, and nothing where somebody serves the pool. The
// rest comes back all the same.
func TestResetLeavesDiscards(t *testing.T) {
	const most, size = 4, 320 << 20 // steps of 64 MiB; and what takes five
	e := pooltest.New(t, pool.Spec{DataSize: 1 << 30, BaseSize: 512 << 20, NoZero: true})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	used := dataUsed(t, e)
	makeSnapshot(t, s, "vm", "base")
	for _, served := range []bool{false, true} {
		want := most
		stop := func() error { return nil }
		if served {
			var err error
			stop, err = s.Pool().Serve(ctx)
			must(t, err)
			want = 0
		}
		writeBlocks(t, s, "vm", size)
		steps := 0
		fault.Set(func(point string) error {
			if point == "pool.discard.step" {
				steps++
			}
			return nil
		})
		err := s.Reset(ctx, "vm", "")
		fault.Set(nil)
		must(t, err)
		if steps != want {
			t.Errorf("served %v: a reset discarded %d steps, want %d", served, steps, want)
		}
		if r, err := s.Reap(ctx, nil); err != nil || r.Deleted != 1 {
			t.Errorf("served %v: %+v, %v", served, r, err)
		}
		must(t, stop())
		if now := dataUsed(t, e); now > used+4<<20 {
			t.Errorf("served %v: %d used at first, %d after the reset", served, used, now)
		}
	}
}

// writeBlocks writes a few bytes to each of the blocks of a node's device, so that it has so many bytes for itself.
func writeBlocks(t testing.TB, s *layer.Store, name string, size int64) {
	t.Helper()
	ctx := pooltest.Context(t)
	path, err := s.Attach(ctx, name, false)
	must(t, err)
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	must(t, err)
	for at := int64(32 << 10); at < size; at += 64 << 10 {
		_, err := f.WriteAt([]byte("vm"), at)
		must(t, err)
	}
	must(t, errors.Join(f.Sync(), f.Close()))
	must(t, s.Detach(ctx, name))
}

// What was half made and is taken back does not keep whoever interrupted it waiting for all of it to be discarded.
func TestUndoLeavesDiscards(t *testing.T) {
	const most, size = 4, 320 << 20 // as above
	e := pooltest.New(t, pool.Spec{DataSize: 1 << 30, BaseSize: 512 << 20, NoZero: true})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	used := dataUsed(t, e)
	steps := 0
	fault.Set(func(point string) error {
		if point == "pool.discard.step" {
			steps++
		}
		return nil
	})
	given := errors.New("given up")
	_, err := s.CreateLayer(ctx, "half", layer.LayerOptions{}, func(_ context.Context, w *layer.LayerWriter) error {
		var st unix.Stat_t
		must(t, unix.Stat(w.Root(), &st))
		device := filepath.Join(t.TempDir(), "device")
		must(t, unix.Mknod(device, unix.S_IFBLK|0o600, int(st.Dev)))
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		must(t, err)
		for at := int64(128 << 20); at < 128<<20+size; at += 64 << 10 { // behind what the file system has
			_, err := f.WriteAt([]byte("layer"), at)
			must(t, err)
		}
		must(t, errors.Join(f.Sync(), f.Close()))
		return given
	})
	fault.Set(nil)
	mustFail(t, err, given)
	if steps != most {
		t.Errorf("the undo discarded %d steps, want %d", steps, most)
	}
	if r, err := s.Reap(ctx, nil); err != nil || r.Deleted != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	if now := dataUsed(t, e); now > used+4<<20 {
		t.Errorf("%d used at first, %d after all", used, now)
	}
}
