package torture_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/vmexec/leak"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// holdings is what this process, the kernel and the pool hold.
type holdings struct {
	kernel     leak.Set // dm devices, loop devices, mounts
	fds        int
	goroutines int
	heap       uint64   // bytes in use after a collection
	resident   uint64   // bytes
	slab       uint64   // bytes of the kernel's, for people
	files      leak.Set // below the root and the run directory
	store      int64    // bytes of the record store
	data       int64    // bytes of the pool in use
	metadata   int64
}

func (h holdings) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d kernel objects, %d files, %d KiB heap, %d KiB resident, %d KiB slab, %d KiB records, %d KiB data, %d KiB metadata",
		h.fds, h.goroutines, len(h.kernel), len(h.files), h.heap>>10, h.resident>>10, h.slab>>10, h.store>>10, h.data>>10, h.metadata>>10)
}

// The profiler keeps every stack that it has seen allocate, for ever: some megabyte in 100,000 operations. It is the test's, and is linked into no
// program that does not ask for it.
func init() { runtime.MemProfileRate = 0 }

func hold(t *testing.T, s *layer.Store, e *pooltest.Env) holdings {
	t.Helper()
	debug.FreeOSMemory()
	debug.FreeOSMemory()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h := holdings{kernel: leak.Kernel(), files: leak.Set{}, goroutines: runtime.NumGoroutine(), heap: m.HeapAlloc}
	fds, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	h.fds = len(fds)
	h.resident, h.slab = kibs(t, "/proc/self/status", "RssAnon:"), kibs(t, "/proc/meminfo", "Slab:")
	for _, dir := range []string{e.Dirs.Root, e.Dirs.Run} {
		must(t, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if filepath.Base(path) == "looks" { // pool/looks.go: of whoever inspects a pool first; it does not grow
				return nil
			}
			h.files["file "+path]++
			return err
		}))
	}
	fi, err := os.Stat(e.Store())
	must(t, err)
	h.store = fi.Size()
	st, err := s.PoolStatus(t.Context())
	must(t, err)
	h.data, h.metadata = *st.DataUsed, *st.MetadataUsed
	return h
}

// kibs returns a number of KiB out of a file of /proc, in bytes.
func kibs(t *testing.T, file, key string) uint64 {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	var n uint64
	for line := range bytes.Lines(b) {
		if rest, ok := strings.CutPrefix(string(line), key); ok {
			_, err := fmt.Sscan(rest, &n)
			must(t, err)
			return n << 10
		}
	}
	t.Fatalf("no %s in %s", key, file)
	return 0
}

// grown says what of the holdings is more than before. Of memory, of the store and of the pool's metadata a
// tenth more is none, and of resident memory slack bytes besides.
func (h holdings) grown(before holdings, slack uint64) error {
	var all []error
	if left := append(h.kernel.Since(before.kernel), h.files.Since(before.files)...); len(left) > 0 {
		all = append(all, fmt.Errorf("left behind: %q", left))
	}
	for _, c := range []struct {
		what      string
		was, is   uint64
		allowance uint64
	}{
		{"descriptors", uint64(before.fds), uint64(h.fds), 0},
		{"goroutines", uint64(before.goroutines), uint64(h.goroutines), 0},
		{"data", uint64(before.data), uint64(h.data), 0},
		{"metadata", uint64(before.metadata), uint64(h.metadata), uint64(before.metadata) / 10},
		{"heap", before.heap, h.heap, before.heap / 10},
		{"resident", before.resident, h.resident, before.resident/10 + slack},
	} {
		if c.is > c.was+c.allowance {
			all = append(all, fmt.Errorf("%s: %d, were %d", c.what, c.is, c.was))
		}
	}
	return errors.Join(all...)
}

// clear removes everything that an actor has made.
func (a *actor) clear(ctx context.Context, s *layer.Store) error {
	for ref := range a.state.Refs {
		if _, err := image.Remove(ctx, s, ref); err != nil {
			return err
		}
	}
	infos, err := s.List(ctx)
	if err != nil {
		return err
	}
	for _, i := range infos {
		if i.State == layer.StateMounted {
			if err := s.Unmount(ctx, i.Name); err != nil {
				return err
			}
		}
	}
	for len(infos) > 0 {
		for _, i := range infos {
			if err := s.Remove(ctx, i.Name); err != nil && !errors.Is(err, layer.ErrBusy) {
				return err
			}
		}
		if infos, err = s.List(ctx); err != nil {
			return err
		}
	}
	a.state = emptyState()
	_, err = s.Prune(ctx, false) // templates
	return err
}

// TestSoak does many operations in one process, and then wants nothing left of them.
// DMLAYER_TORTURE_OPERATIONS says how many.
func TestSoak(t *testing.T) {
	seed := seed(t)
	operations := setting(t, "OPERATIONS", 150)
	e := pooltest.New(t, pool.Spec{BaseSize: baseSize, DataSize: 512 << 20})
	s := e.Open(t)
	a := newActor(0, baseSize, seed, t.TempDir())
	a.solo = true
	work := func(n int) {
		for k := range n {
			if err := a.do(t.Context(), s, a.next()); err != nil {
				t.Fatalf("operation %d: %v", k, err)
			}
			if k%5000 == 4999 {
				t.Logf("%d operations: %v", k+1, hold(t, s, e))
			}
		}
		must(t, a.clear(t.Context(), s))
	}
	_, err := s.CreateSnapshot(t.Context(), "first", layer.SnapshotOptions{})
	must(t, err)
	must(t, withDisk(t.Context(), s, "first", true, func(*os.File) error { return nil })) // makes folders that stay
	work(max(operations/20, 100))                                                         // what is made once and kept
	hold(t, s, e)                                                                         // leaves a note of how full the pool is
	before := hold(t, s, e)
	t.Logf("before: %v", before)
	work(operations)
	after := hold(t, s, e)
	t.Logf("after %d operations: %v", operations, after)
	slack := uint64(0)
	if operations < 10000 {
		slack = 2 << 20 // what Go's runtime takes at first and keeps: a second core's caches, a thread's stacks
	}
	if err := after.grown(before, slack); err != nil {
		t.Error(err)
	}
}
