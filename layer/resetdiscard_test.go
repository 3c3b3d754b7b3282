package layer_test

import (
	"errors"
	"os"
	"testing"

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
