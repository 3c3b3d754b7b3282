package space

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

const mib = 1 << 20

// Running writers cannot fill a pool with a ceiling, however they try: the guard of min-free stands only at the making of nodes, the
// ceiling counts what they could write.
func TestP04WritersCannotPassTheCeiling(t *testing.T) {
	everywhere(t, pool.Spec{DataSize: 136 * mib, BaseSize: 32 * mib, Space: pool.Space{MinFree: -1, Overcommit: 80}}, writersBelowTheCeiling)
}

func writersBelowTheCeiling(t *testing.T, e *place, s *layer.Store) {
	ctx := pooltest.Context(t)
	var dirs []string
	for n := 0; ; n++ {
		name := fmt.Sprintf("n-%d", n)
		_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{})
		if errors.Is(err, layer.ErrNoSpace) {
			break
		}
		must(t, err)
		dirs = append(dirs, mount(t, s, name))
	}
	if len(dirs) != 3 {
		t.Errorf("%d nodes of 32 MiB below a ceiling of 108 MiB", len(dirs))
	}
	pooltest.Start(t, pooltest.Job{Op: "fill", Args: dirs}).Succeed()
	st := status(t, e)
	t.Logf("%d nodes full: data %d of %d", len(dirs), *st.DataUsed, *st.DataTotal)
	if st.State != pool.StateActive || *st.DataUsed < int64(len(dirs))*24*mib {
		t.Errorf("%s, data %d", st.State, *st.DataUsed)
	}
	for i := range dirs {
		name := fmt.Sprintf("n-%d", i)
		unmount(t, s, name)
		wantSound(t, s, name)
	}
}

// A node's size is a cap that its writer meets as ENOSPC of his own file system, which stays sound; the pool does not notice.
func TestP05WriterMeetsHisOwnENOSPC(t *testing.T) {
	each(t, pool.Spec{BaseSize: 64 * mib}, func(t *testing.T, e *place, s *layer.Store) {
		snapshot(t, s, "web", "")
		dir := mount(t, s, "web")
		ballast(t, dir, 24*mib)
		if err := fill(dir); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("filled up: %v", err)
		}
		if st := status(t, e); st.State != pool.StateActive || !*st.TakesNodes {
			t.Errorf("%s, takes nodes: %v", st.State, *st.TakesNodes)
		}
		must(t, s.Resize(pooltest.Context(t), "web", 400*mib))
		must(t, writeFile(filepath.Join(dir, "more"), 1, 8*mib))
		unmount(t, s, "web")
		wantSound(t, s, "web")
	})
}

// ballast allocates all but some bytes of a file system, which takes nothing of the pool: nothing is written.
func ballast(t testing.TB, dir string, leave int64) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "ballast"))
	must(t, err)
	defer f.Close()
	if n := freeIn(t, dir) - leave; n > 0 {
		must(t, unix.Fallocate(int(f.Fd()), 0, 0, n))
	}
}

// Over-commitment is shown, and where there is a ceiling nothing passes it: making, growing, resetting to something larger, two at once.
func TestP06OvercommitIsShownAndEnforced(t *testing.T) {
	everywhere(t, pool.Spec{DataSize: 100 * mib, BaseSize: 64 * mib, Space: pool.Space{Overcommit: 200}}, overcommitted)
}

func overcommitted(t *testing.T, e *place, s *layer.Store) {
	ctx := pooltest.Context(t)
	snapshot(t, s, "a", "")
	snapshot(t, s, "b", "")
	st := status(t, e)
	if st.VirtualTotal != 128*mib || st.Overcommit == nil || *st.Overcommit != 128 || st.OvercommitLimit == nil || *st.OvercommitLimit != 200 {
		t.Errorf("shown: %d, %v, %v", st.VirtualTotal, st.Overcommit, st.OvercommitLimit)
	}
	_, err := s.CreateSnapshot(ctx, "c", layer.SnapshotOptions{Size: 80 * mib})
	mustFail(t, err, layer.ErrNoSpace)
	for _, word := range []string{"208.0 MiB", "100.0 MiB", "200%"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("the error does not say %s: %v", word, err)
		}
	}
	mustFail(t, s.Resize(ctx, "b", 200*mib), layer.ErrNoSpace)
	must(t, s.Resize(ctx, "b", 72*mib))

	var both sync.WaitGroup
	results := make([]error, 2)
	for i := range results {
		both.Go(func() {
			_, results[i] = s.CreateSnapshot(ctx, fmt.Sprintf("racer-%d", i), layer.SnapshotOptions{})
		})
	}
	both.Wait()
	if (results[0] == nil) == (results[1] == nil) || !errors.Is(errors.Join(results...), layer.ErrNoSpace) {
		t.Errorf("two at once: %v, %v", results[0], results[1])
	}
	_, err = s.Commit(ctx, "a", "image", layer.CommitOptions{Move: true})
	must(t, err) // what never changes need not be counted
	if now := status(t, e).VirtualTotal; now != (72+64)*mib {
		t.Errorf("%d could be written", now)
	}
	snapshot(t, s, "d", "image")
}

// Overwriting what a snapshot shares takes new blocks, as many as there are. A ceiling counts them: each node with all of its size.
func TestP07OverwritingSharedBlocksIsCounted(t *testing.T) {
	everywhere(t, pool.Spec{DataSize: 84 * mib, BaseSize: 32 * mib, Space: pool.Space{MinFree: -1, Overcommit: 80}}, overwriting)
}

func overwriting(t *testing.T, e *place, s *layer.Store) {
	ctx := pooltest.Context(t)
	const size = 12 * mib
	snapshot(t, s, "a", "")
	must(t, writeFile(filepath.Join(mount(t, s, "a"), "f"), 1, size))
	snapshot(t, s, "b", "a")
	_, err := s.CreateSnapshot(ctx, "c", layer.SnapshotOptions{Parent: "a"})
	mustFail(t, err, layer.ErrNoSpace)
	before := *status(t, e).DataUsed
	must(t, writeFile(filepath.Join(mount(t, s, "b"), "f"), 2, size))
	must(t, writeFile(filepath.Join(e.MountPoint("a"), "f"), 3, size))
	st := status(t, e)
	if st.State != pool.StateActive || *st.DataUsed < before+size {
		t.Errorf("%s, data %d, %d before both were overwritten", st.State, *st.DataUsed, before)
	}
	wantContent(t, filepath.Join(e.MountPoint("a"), "f"), 3, size)
	wantContent(t, filepath.Join(e.MountPoint("b"), "f"), 2, size)
	unmount(t, s, "a")
	unmount(t, s, "b")
}
