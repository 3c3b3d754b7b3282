package space

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// What is removed goes back to the host, which has more free afterwards; pool and host are told apart.
func TestP03RemovedLayersGiveTheHostItsBlocksBack(t *testing.T) {
	each(t, pool.Spec{Discard: "passdown"}, func(t *testing.T, e *place, s *layer.Store) {
		ctx := pooltest.Context(t)
		const size = 6 * mib
		make := func(name, parent string) {
			_, err := s.CreateLayer(ctx, name, layer.LayerOptions{Parent: parent}, func(_ context.Context, w *layer.LayerWriter) error {
				return writeFile(filepath.Join(w.Root(), name), 1, size)
			})
			must(t, err)
		}
		make("base", "")
		before, onDisk := status(t, e), onHost(t, e.below)
		make("one", "base")
		make("two", "one")
		full := status(t, e)
		if *full.DataUsed < *before.DataUsed+2*size || onHost(t, e.below) < onDisk+2*size {
			t.Errorf("used %d, then %d; below %d, then %d", *before.DataUsed, *full.DataUsed, onDisk, onHost(t, e.below))
		}
		// Of a file the host's file system is what is below; a disk and a volume group have promised all that the pool has.
		if file := e.backing == "loopback"; file && *full.HostFree > *before.HostFree-2*size || !file && *full.HostFree != *before.HostFree {
			t.Errorf("free below %d, then %d", *before.HostFree, *full.HostFree)
		}
		remove(t, s, "two")
		remove(t, s, "one")
		after := status(t, e)
		if *after.DataUsed > *before.DataUsed+mib || onHost(t, e.below) > onDisk+2*mib || e.backing == "loopback" && *after.HostFree < *full.HostFree+size {
			t.Errorf("used %d, then %d; below %d, then %d; free there %d, then %d", *before.DataUsed, *after.DataUsed, onDisk, onHost(t, e.below),
				*full.HostFree, *after.HostFree)
		}
		if file := e.backing == "loopback"; file != (after.DataAllocated != nil) || file && *after.DataAllocated > *full.DataAllocated-size {
			t.Errorf("allocated below: %v, then %v", full.DataAllocated, after.DataAllocated)
		}
		if *after.DiscardMode != "passdown" {
			t.Errorf("discards: %s", *after.DiscardMode)
		}
	})
}

// Those who watch see what is there: of a node what it has and what removing it would free, of its file system what df asks for, of the
// pool what is used and when it will be full.
func TestP08UsageIsSeen(t *testing.T) {
	each(t, pool.Spec{}, func(t *testing.T, e *place, s *layer.Store) {
		ctx := pooltest.Context(t)
		const size = 8 * mib
		snapshot(t, s, "web", "")
		before := status(t, e)
		dir := mount(t, s, "web")
		free := freeIn(t, dir)
		must(t, writeFile(filepath.Join(dir, "f"), 1, size))
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		if total := int64(st.Blocks) * st.Bsize; total < 200*mib || free-freeIn(t, dir) < size {
			t.Errorf("df: %d in all, %d less free", total, free-freeIn(t, dir))
		}
		infos, err := s.List(ctx)
		must(t, err)
		must(t, s.Measure(ctx, infos))
		if len(infos) != 1 || infos[0].Used == nil || *infos[0].Used < size || *infos[0].Exclusive < size {
			t.Errorf("measured: %+v", infos)
		}
		now := status(t, e)
		if *now.DataUsed < *before.DataUsed+size {
			t.Errorf("used %d, then %d", *before.DataUsed, *now.DataUsed)
		}
		// As if the look before the writing had been a minute ago.
		text, err := json.Marshal([]map[string]any{{"time": time.Now().UTC().Add(-time.Minute), "data": *before.DataUsed, "metadata": *before.MetadataUsed}})
		must(t, err)
		must(t, os.WriteFile(filepath.Join(e.Dirs.Run, "state", now.UUID, "looks"), text, 0o600))
		now = status(t, e)
		if now.DataFullIn == nil {
			t.Fatal("nobody knows when it will be full")
		}
		rate := float64(*now.DataUsed-*before.DataUsed) / 60
		want := float64(*now.DataTotal-*now.DataUsed) / rate
		if got := float64(*now.DataFullIn); got < want*0.5 || got > want*2 {
			t.Errorf("full in %.0f seconds, want about %.0f", got, want)
		}
		unmount(t, s, "web")
	})
}

// A pool that is full leaves another one alone, also one of the same root, on the same host's file system or in the same volume group.
func TestFullPoolLeavesOthersAlone(t *testing.T) {
	for _, b := range backings(t, "") {
		t.Run(b, func(t *testing.T) {
			fullBesideAnother(t, newPlaceWith(t, b, pool.Spec{DataSize: 256 * mib, BaseSize: 128 * mib}, 400*mib))
		})
	}
}

// smallBeside makes a small pool of the same kind.
func smallBeside(t *testing.T, e *place) {
	t.Helper()
	spec := pool.Spec{Name: "small", FS: "ext4", DataSize: 48 * mib, MetadataSize: 4 * mib, BaseSize: 64 * mib}
	switch e.backing {
	case "lvm":
		spec.Backing, spec.VG = pool.BackingLVM, volumeGroup
	case "device":
		spec.Backing = pool.BackingDevice
		spec.DataDevice, spec.MetadataDevice = pooltest.NewLoopDisk(t, 49*mib, 0).Path, pooltest.NewLoopDisk(t, 5*mib, 0).Path
		spec.DataSize, spec.MetadataSize = 0, 0
	}
	must(t, pool.Create(pooltest.Context(t), e.Dirs, spec))
}

func fullBesideAnother(t *testing.T, e *place) {
	s, ctx := e.Open(t), pooltest.Context(t)
	smallBeside(t, e)
	small, err := layer.Open(ctx, layer.Config{Dirs: e.Dirs, Pool: "small"})
	must(t, err)
	snapshot(t, small, "web", "")
	snapshot(t, s, "web", "")
	if err := fill(mount(t, small, "web")); !isNoRoom(err) {
		t.Errorf("filled up: %v", err)
	}
	st, err := pool.Inspect(ctx, e.Dirs, "small")
	must(t, err)
	if st.State != pool.StateOutOfDataSpace {
		t.Fatalf("it is %s", st.State)
	}
	must(t, writeFile(filepath.Join(mount(t, s, "web"), "f"), 1, 8*mib))
	snapshot(t, s, "other", "web")
	unmount(t, s, "web")
	unmount(t, small, "web")
	wantSound(t, s, "web")
	if st := status(t, e); st.State != pool.StateActive {
		t.Errorf("the other one is %s", st.State)
	}
	must(t, small.Close())
	must(t, pool.Destroy(ctx, e.Dirs, "small"))
}

// Sizes: of its own, larger than its parent's, grown while it is mounted and while it is not.
func TestSizes(t *testing.T) {
	each(t, pool.Spec{BaseSize: 64 * mib}, func(t *testing.T, _ *place, s *layer.Store) {
		ctx := pooltest.Context(t)
		size := func(dir string, want int64) {
			t.Helper()
			var st unix.Statfs_t
			must(t, unix.Statfs(dir, &st))
			if got := int64(st.Blocks) * st.Bsize; got < want*3/4 || got > want {
				t.Errorf("%s has %d bytes, want about %d", dir, got, want)
			}
		}
		snapshot(t, s, "parent", "")
		for i, name := range []string{"of its own", "child"} {
			so := layer.SnapshotOptions{Size: 512 * mib}
			if name == "child" {
				so.Parent = "parent"
			}
			node := fmt.Sprintf("n-%d", i)
			_, err := s.CreateSnapshot(ctx, node, so)
			must(t, err)
			size(mount(t, s, node), 512*mib)
		}
		must(t, s.Resize(ctx, "n-0", 768*mib))
		size(mount(t, s, "n-0"), 768*mib)
		unmount(t, s, "n-0")
		must(t, s.Resize(ctx, "n-0", 1<<30))
		size(mount(t, s, "n-0"), 1<<30)
		for _, name := range []string{"n-0", "n-1"} {
			unmount(t, s, name)
			wantSound(t, s, name)
		}
		_, err := s.CreateSnapshot(ctx, "small", layer.SnapshotOptions{Parent: "n-0", Size: 512 * mib})
		mustFail(t, err, layer.ErrInvalid)
	})
}
