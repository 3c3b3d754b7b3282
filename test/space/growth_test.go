package space

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Twenty writers write more than there can ever be: the pool grows under them as long as what it lies on has anything left, then they
// get errors, all of them; nobody hangs, who did not write has lost nothing, and removing heals it.
func TestGrowthThatEnds(t *testing.T) {
	const first, last = 128 * mib, 192 * mib
	spec := pool.Spec{DataSize: first, MetadataSize: 16 * mib, Space: pool.Space{MinFree: -1}}
	each(t, spec, func(t *testing.T, e *place, s *layer.Store) {
		ctx := pooltest.Context(t)
		const size = 4 * mib
		limit := int64(last)
		if *status(t, e).DataTotal > first { // of an xfs
			limit += 64 * mib
		}
		if e.backing != "lvm" { // its group has that much
			_, err := pool.SetSpace(ctx, e.Dirs, e.Name, func(s *pool.Space) { s.GrowLimit = limit })
			must(t, err)
		}
		snapshot(t, s, "idle", "")
		must(t, writeFile(filepath.Join(mount(t, s, "idle"), "kept"), 7, size))
		unmount(t, s, "idle")
		stop := serve(t, e)
		for !*status(t, e).Served {
			must(t, ctx.Err())
		}
		var dirs []string
		for i := range writers {
			name := fmt.Sprintf("writer-%d", i)
			snapshot(t, s, name, "")
			dirs = append(dirs, mount(t, s, name))
		}
		before := *status(t, e).DataTotal
		child := pooltest.Start(t, pooltest.Job{Op: "fill", Args: dirs})
		if e.backing == "device" { // its owner makes it larger in the middle
			for *status(t, e).DataUsed < before/2 {
				must(t, ctx.Err())
			}
			e.DataDisk.Resize(t, limit+mib)
		}
		child.Succeed()
		nobodyHangs(ctx, t)
		st := status(t, e)
		t.Logf("data from %.0f to %.0f MiB, %s", inMiB(before), inMiB(*st.DataTotal), st.State)
		// When the service has the writers fail, the kernel takes the pool for writable until the next one finds it full: of xfs there is none.
		full := st.State == pool.StateOutOfDataSpace || st.State == pool.StateActive && *st.DataUsed >= *st.DataTotal-mib
		if !full || *st.DataTotal < before+32*mib {
			t.Errorf("%s, %d of data used, %d before, %d now", st.State, *st.DataUsed, before, *st.DataTotal)
		}
		for i := range writers {
			unmount(t, s, fmt.Sprintf("writer-%d", i))
		}
		for i := range writers / 2 {
			remove(t, s, fmt.Sprintf("writer-%d", i))
		}
		stop()
		if st := status(t, e); st.State != pool.StateActive {
			t.Errorf("after the removal: %s", st.State)
		}
		wantContent(t, filepath.Join(mount(t, s, "idle"), "kept"), 7, size)
		unmount(t, s, "idle")
		wantSound(t, s, "idle")
		afterwards(t, s, fmt.Sprintf("writer-%d", writers-1))
	})
}

// Twenty writers write three times what a pool has, and what it lies on has that: no writer gets an error, and every byte is right.
func TestGrowthUnderTwentyWriters(t *testing.T) {
	const first, all = 160 * mib, 480 * mib
	for _, fs := range fileSystems {
		for _, b := range backings(t, fs) {
			if b == "loopback" {
				continue // TestTwentyWritersGrow of service
			}
			t.Run(b+"/"+fs, func(t *testing.T) { growsUnderWriters(t, b, fs, first, all) })
		}
	}
}

func growsUnderWriters(t *testing.T, backing, fs string, first, all int64) {
	spec := pool.Spec{FS: fs, DataSize: first, MetadataSize: 16 * mib, BaseSize: 320 * mib, Space: pool.Space{MinFree: -1, GrowBy: 30}}
	e := newPlaceWith(t, backing, spec, all)
	s := e.Open(t)
	stop := serve(t, e)
	for !*status(t, e).Served {
		must(t, pooltest.Context(t).Err())
	}
	const size = 16 * mib
	var dirs []string
	for i := range writers {
		name := fmt.Sprintf("writer-%d", i)
		snapshot(t, s, name, "")
		dirs = append(dirs, mount(t, s, name))
	}
	results := make(chan error, writers)
	for i, dir := range dirs {
		go func() { results <- writeFile(filepath.Join(dir, "file"), i, size) }()
	}
	if backing == "device" {
		e.DataDisk.Resize(t, all+mib)
	}
	for range dirs {
		if err := <-results; err != nil {
			t.Errorf("a writer: %v", err)
		}
	}
	for i, dir := range dirs {
		wantContent(t, filepath.Join(dir, "file"), i, size)
		unmount(t, s, fmt.Sprintf("writer-%d", i))
	}
	stop()
	st := status(t, e)
	t.Logf("data from %.0f to %.0f MiB", inMiB(first), inMiB(*st.DataTotal))
	if *st.DataTotal < writers*size {
		t.Errorf("the pool has %d", *st.DataTotal)
	}
}
