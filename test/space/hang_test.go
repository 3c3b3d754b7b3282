package space

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

const writers = 20

// uninterruptible returns the tasks of programs that nobody can kill right now. The kernel's own threads have no memory of theirs.
func uninterruptible() (tasks []string, err error) {
	stats, err := filepath.Glob("/proc/[0-9]*/task/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	for _, path := range stats {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended
		}
		text := string(b)
		end := strings.LastIndexByte(text, ')') // the name may have anything in it
		fields := strings.Fields(text[end+1:])
		const state, vsize = 0, 20
		if end < 0 || len(fields) <= vsize {
			return nil, fmt.Errorf("%s: %q", path, text)
		}
		if fields[state] == "D" && fields[vsize] != "0" {
			tasks = append(tasks, text[:end+1])
		}
	}
	return tasks, nil
}

// nobodyHangs waits until no task is in uninterruptible sleep: one that waits for a disk that works is not there for long.
func nobodyHangs(ctx context.Context, t testing.TB) {
	t.Helper()
	for {
		tasks, err := uninterruptible()
		must(t, err)
		if len(tasks) == 0 {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("in uninterruptible sleep: %v", tasks)
		}
	}
}

// Twenty writers fill a pool: each gets an error, nobody hangs, the pool's owner can look, remove and trim, which heals it, and who did
// not write has lost nothing.
func TestP01FullPoolHangsNobody(t *testing.T) {
	each(t, pool.Spec{DataSize: 112 << 20, Space: pool.Space{MinFree: -1}}, func(t *testing.T, e *place, s *layer.Store) {
		ctx := pooltest.Context(t)
		const size = 4 << 20
		for _, name := range []string{"idle", "quiet"} {
			snapshot(t, s, name, "")
			must(t, writeFile(filepath.Join(mount(t, s, name), "kept"), 7, size))
		}
		unmount(t, s, "idle")
		quiet := e.MountPoint("quiet")
		must(t, writeFile(filepath.Join(quiet, "gone"), 8, 4*size))
		must(t, os.Remove(filepath.Join(quiet, "gone")))
		must(t, fsutil.SyncFS(quiet)) // who has not written lately has nothing left to write when the pool is full
		var dirs []string
		for i := range writers {
			name := fmt.Sprintf("writer-%d", i)
			snapshot(t, s, name, "")
			dirs = append(dirs, mount(t, s, name))
		}
		pooltest.Start(t, pooltest.Job{Op: "fill", Args: dirs}).Succeed()
		nobodyHangs(ctx, t)
		if st := status(t, e); st.State != pool.StateOutOfDataSpace || *st.TakesNodes {
			t.Fatalf("%s, takes nodes: %v", st.State, *st.TakesNodes)
		}
		infos, err := s.List(ctx)
		must(t, err)
		if len(infos) != writers+2 {
			t.Errorf("%d nodes", len(infos))
		}
		_, err = s.CreateSnapshot(ctx, "new", layer.SnapshotOptions{})
		mustFail(t, err, layer.ErrNoSpace)

		trimmed(t, s, "quiet")
		if st := status(t, e); st.State != pool.StateActive {
			t.Errorf("after a trim: %s", st.State)
		}
		for i := range writers {
			unmount(t, s, fmt.Sprintf("writer-%d", i))
		}
		for i := range writers / 2 {
			remove(t, s, fmt.Sprintf("writer-%d", i))
		}
		nobodyHangs(ctx, t)
		snapshot(t, s, "new", "")
		must(t, writeFile(filepath.Join(mount(t, s, "new"), "f"), 1, size))
		wantContent(t, filepath.Join(quiet, "kept"), 7, size)
		wantContent(t, filepath.Join(mount(t, s, "idle"), "kept"), 7, size)
		for _, name := range []string{"new", "quiet", "idle"} {
			unmount(t, s, name)
			wantSound(t, s, name)
		}
		for i := writers - 3; i < writers; i++ {
			afterwards(t, s, fmt.Sprintf("writer-%d", i))
		}
	})
}

// afterwards: what filled the pool can be used again, and has what was made durable.
func afterwards(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	ctx := pooltest.Context(t)
	r, err := s.Fsck(ctx, name, true)
	if err != nil {
		t.Errorf("%s: %+v, %v", name, r, err)
	}
	dir := mount(t, s, name)
	made, err := filepath.Glob(filepath.Join(dir, "fill-*"))
	must(t, err)
	for n := range len(made) - 1 { // the last one was being written
		wantContent(t, filepath.Join(dir, fmt.Sprintf("fill-%d", n)), n, piece*chunk)
	}
	unmount(t, s, name)
}
