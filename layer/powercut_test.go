package layer_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A power cut is played on a log of all writes to the disks under the pool. Everything that was acknowledged
// must be there, and nothing half.

// contents says what each node holds: files and their texts, or raw bytes.
type contents map[string]string

// step is an operation of a script, with what there must be once it is acknowledged.
type step struct {
	name string
	do   func(ctx context.Context, s *layer.Store, e *pooltest.Env) error
	want contents
}

const rawBytes = 1 << 20

var pattern = bytes.Repeat([]byte("written by a VM\n"), rawBytes/16)

// script is what is done before the power is cut.
func script() []step {
	type c = contents
	with := func(before contents, changes contents, gone ...string) contents {
		after := maps.Clone(before)
		maps.Copy(after, changes)
		for _, name := range gone {
			delete(after, name)
		}
		return after
	}
	snapshot := func(name, parent string) func(context.Context, *layer.Store, *pooltest.Env) error {
		return func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
			_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{Parent: parent})
			return err
		}
	}
	made := func(name, parent string, files map[string]string) func(context.Context, *layer.Store, *pooltest.Env) error {
		return func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
			_, err := s.CreateLayer(ctx, name, layer.LayerOptions{Parent: parent}, fillWith(files))
			return err
		}
	}
	var steps []step
	last := c{}
	add := func(name string, want contents, do func(context.Context, *layer.Store, *pooltest.Env) error) {
		steps = append(steps, step{name, do, want})
		last = want
	}
	add("base", with(last, c{"base": "a=1 (side file)"}), made("base", "", map[string]string{"a": "1"}))
	add("top", with(last, c{"top": "a=1 b=2 (side file)"}), made("top", "base", map[string]string{"b": "2"}))
	chain := &slowChain{names: []string{"c1", "c2", "c3"}}
	add("c1", with(last, c{"c1": "a=1 c1=of c1 (c1)"}), chain.start)
	add("c2", with(last, c{"c2": "a=1 c1=of c1 c2=of c2 (c2)"}), chain.next)
	add("c3", with(last, c{"c3": "a=1 c1=of c1 c2=of c2 c3=of c3 (c3)"}), chain.end)
	add("s1", with(last, c{"s1": "a=1 b=2"}), snapshot("s1", "top"))
	add("write", with(last, c{"s1": "a=1 b=2 c=3"}), writeDurably)
	add("commit", with(last, c{"l1": "a=1 b=2 c=3"}), func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
		_, err := s.Commit(ctx, "s1", "l1", layer.CommitOptions{})
		return err
	})
	add("resize", last, func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error { return s.Resize(ctx, "s1", 96<<20) })
	add("reset", with(last, c{"s1": "a=1"}), func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error { return s.Reset(ctx, "s1", "base") })
	add("window", with(last, c{"s2": "a=1 b=2"}), func(ctx context.Context, s *layer.Store, e *pooltest.Env) error {
		if err := forgetCursor(e); err != nil {
			return err
		}
		return snapshot("s2", "top")(ctx, s, e)
	})
	add("rename", with(last, c{"s3": "a=1 b=2"}, "s2"), func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error { return s.Rename(ctx, "s2", "s3") })
	add("remove", with(last, nil, "s3"), func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error { return s.Remove(ctx, "s3") })
	add("disk", with(last, c{"vm": ""}), snapshot("vm", ""))
	add("move", with(last, c{"image": "v=" + string(pattern)}, "vm"), writeAsVMAndMove)
	add("last", with(last, c{"s4": "a=1 b=2 c=3"}), snapshot("s4", "l1"))
	return steps
}

// writeDurably writes a file that its writer has been told is safe.
func writeDurably(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
	m, err := s.Mount(ctx, "s1", "", layer.MountOptions{})
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(m.Dir, ".c"), []byte("3"), 0o600); err != nil {
		return err
	}
	if err := fsutil.SyncFS(m.Dir); err != nil {
		return err
	}
	err = errors.Join(os.Rename(filepath.Join(m.Dir, ".c"), filepath.Join(m.Dir, "c")), fsutil.SyncFS(m.Dir))
	return errors.Join(err, s.Unmount(ctx, "s1"))
}

// writeAsVMAndMove does what a VM does that closes its disk without a flush, and turns the disk into a layer.
func writeAsVMAndMove(ctx context.Context, s *layer.Store, e *pooltest.Env) error {
	path, err := s.Attach(ctx, "vm", false)
	if err != nil {
		return err
	}
	dir := filepath.Join(e.Dirs.Run, "vm")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := fsutil.Mount(ctx, path, dir, fsutil.MountOptions{Type: fsutil.Ext4, Extra: []string{"nobarrier"}}); err != nil {
		return err
	}
	err = os.WriteFile(filepath.Join(dir, "v"), pattern, 0o600)
	if err = errors.Join(err, fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}), s.Detach(ctx, "vm")); err != nil {
		return err
	}
	_, err = s.Commit(ctx, "vm", "image", layer.CommitOptions{Move: true, Trust: true})
	return err
}

// look reads what there is.
func look(ctx context.Context, s *layer.Store) (contents, error) {
	infos, err := s.List(ctx)
	if err != nil {
		return nil, err
	}
	c := contents{}
	for _, i := range infos {
		if c[i.Name], err = content(ctx, s, i.Node); err != nil {
			return nil, fmt.Errorf("%s: %w", i.Name, err)
		}
	}
	return c, nil
}

func content(ctx context.Context, s *layer.Store, n layer.Node) (text string, err error) {
	if n.Foreign {
		path, err := s.Attach(ctx, n.Name, true)
		if err != nil {
			return "", err
		}
		f, err := os.Open(path)
		if err != nil {
			return "", err
		}
		b := make([]byte, rawBytes)
		_, err = io.ReadFull(f, b)
		return string(b), errors.Join(err, f.Close(), s.Detach(ctx, n.Name))
	}
	side, err := sideFile(ctx, s, n.Name)
	if err != nil {
		return "", err
	}
	err = s.View(ctx, []string{n.Name}, func(_ context.Context, roots []string) error {
		entries, err := os.ReadDir(roots[0])
		if err != nil {
			return err
		}
		var files []string
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				continue // not renamed yet
			}
			b, err := os.ReadFile(filepath.Join(roots[0], e.Name()))
			if err != nil {
				return err
			}
			files = append(files, e.Name()+"="+string(b))
		}
		text = strings.Join(append(files, side...), " ")
		return nil
	})
	return text, err
}

// sideFile returns what the side file of a node holds, in brackets, if it has one.
func sideFile(ctx context.Context, s *layer.Store, name string) ([]string, error) {
	r, err := s.OpenBlob(ctx, name, "test")
	if errors.Is(err, layer.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(r)
	return []string{"(" + string(text) + ")"}, errors.Join(err, r.Close())
}

// same compares, but for disks whose owner was at work.
func (c contents) same(want contents) bool {
	if len(c) != len(want) {
		return false
	}
	for name, text := range want {
		if have, ok := c[name]; !ok || name != "vm" && have != text {
			return false
		}
	}
	return true
}

func (c contents) String() string {
	var all []string
	for _, name := range slices.Sorted(maps.Keys(c)) {
		text := c[name]
		if len(text) > 40 {
			text = text[:40] + "…"
		}
		all = append(all, fmt.Sprintf("%s(%q)", name, text))
	}
	return strings.Join(all, " ")
}

// stage is a pool on disks whose writes are logged.
type stage struct {
	e     *pooltest.Env
	disks []*pooltest.Disk
}

func (st *stage) mark(text string) {
	for _, d := range st.disks {
		d.Mark(text)
	}
}

// record runs the script, with a mark at each fault point and after each acknowledged operation.
func (st *stage) record(t *testing.T, steps []step) {
	ctx := pooltest.Context(t)
	s, err := layer.Open(ctx, st.e.Config())
	must(t, err)
	fault.Set(func(point string) error {
		pooltest.Reached(point)
		st.mark("at-" + point)
		return nil
	})
	defer fault.Set(nil)
	for _, step := range steps {
		if err := step.do(ctx, s, st.e); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		st.mark("ack-" + step.name)
	}
	must(t, s.Close())
	must(t, pool.Stop(ctx, st.e.Dirs, st.e.Name))
}

// check opens the pool after a cut, as after a reboot, and compares with the last acknowledged operation
// and the one that was going on.
func (st *stage) check(t *testing.T, where string, acked int, steps []step) {
	ctx := pooltest.Context(t)
	e := &pooltest.Env{Dirs: pool.Dirs{Root: st.e.Dirs.Root, Run: filepath.Join(t.TempDir(), "run")}, Name: st.e.Name}
	s, err := layer.Open(ctx, e.Config())
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	defer s.Close()
	have, err := look(ctx, s)
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	before := contents{}
	if acked > 0 {
		before = steps[acked-1].want
	}
	after := before
	if acked < len(steps) {
		after = steps[acked].want
	}
	if !have.same(before) && !have.same(after) {
		t.Errorf("%s: there is  %v\nacknowledged %v\ngoing on     %v", where, have, before, after)
	}
	if err := e.Check(ctx); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

// acked returns how many operations were acknowledged before an entry, and what came last.
func acked(r *pooltest.Replay, n int) (count int, where string) {
	where = "at the beginning"
	for _, e := range r.Entries[:n] {
		if e.Mark == "" {
			continue
		}
		where = fmt.Sprintf("cut after %d entries, %s", n, e.Mark)
		if strings.HasPrefix(e.Mark, "ack-") {
			count++
		}
	}
	return count - 1, where // the pool's creation is one
}

// TestPowerCut cuts the power after each acknowledged operation, at the points where the order of writes
// matters most, and at random. Among the cuts are interleavings 8 (after create_snap, before the record), 9
// (while a window of ids is being reserved) and 28 (a VM closes its raw disk without a flush, and the disk
// itself becomes a layer).
func TestPowerCut(t *testing.T) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{disk}}
	must(t, pool.Create(pooltest.Context(t), dirs, smallPool))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name) }) // of a test that failed
	st.mark("ack-create")
	steps := script()
	st.record(t, steps)
	must(t, disk.Remove())
	r := disk.Replay()
	var cuts []int
	first := 0
	for i, e := range r.Entries {
		if e.Mark == "ack-create" {
			first = i + 1
		}
		if strings.HasPrefix(e.Mark, "ack-") || slices.Contains(cutAt, e.Mark) {
			cuts = append(cuts, i+1)
		}
	}
	rnd := rand.New(rand.NewPCG(3, 0))
	for range randomCuts(t) {
		cuts = append(cuts, first+rnd.IntN(len(r.Entries)-first))
	}
	slices.Sort(cuts)
	for _, n := range slices.Compact(cuts) {
		r.CutAt(n, func() {
			count, where := acked(r, n)
			st.check(t, where, count, steps)
		})
	}
	t.Logf("%d entries, %d cuts", len(r.Entries), len(cuts))
}

// cutAt are marks at which it must be cut: interleavings 8 (after create_snap), 9 (within a reservation),
// and where a deletion or a record is under way.
var cutAt = []string{"at-layer.create.thin-created", "at-pool.reserve.stored", "at-pool.reserve.bumped", "at-layer.remove.tombstone",
	"at-layer.freeze.snapped", "at-layer.fill.copy-settled", "at-layer.commit.replayed", "at-layer.reset.made", "at-layer.commit.flushed-in-place"}

func randomCuts(t testing.TB) int {
	n := 12
	if text := os.Getenv("DMLAYER_POWER_CUTS"); text != "" {
		if _, err := fmt.Sscan(text, &n); err != nil {
			t.Fatalf("DMLAYER_POWER_CUTS: %v", err)
		}
	}
	return n
}

// TestInterleaving19PowerCutOnTwoDisks: store and pool lie on different disks. The cut comes at the same
// instant for both: at a mark.
func TestInterleaving19PowerCutOnTwoDisks(t *testing.T) {
	dirs := pooltest.Dirs(t)
	storeDisk := pooltest.NewDisk(t, dirs.Root, 256<<20)
	poolDisk := pooltest.NewDisk(t, filepath.Join(t.TempDir(), "pool"), 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{storeDisk, poolDisk}}
	ctx := pooltest.Context(t)
	must(t, pool.Create(ctx, dirs, smallPool))
	must(t, pool.Stop(ctx, dirs, smallPool.Name))
	files := []string{st.e.Data(), st.e.Metadata()}
	for _, file := range files {
		must(t, pooltest.CopySparse(file, filepath.Join(poolDisk.Dir, filepath.Base(file))))
		must(t, os.Truncate(file, 0))
	}
	must(t, errors.Join(fsutil.SyncFS(poolDisk.Dir), fsutil.SyncFS(storeDisk.Dir)))
	bind := func() {
		for _, file := range files {
			must(t, unix.Mount(filepath.Join(poolDisk.Dir, filepath.Base(file)), file, "", unix.MS_BIND, ""))
		}
	}
	unbind := func() {
		for _, file := range files {
			must(t, unix.Unmount(file, 0))
		}
	}
	t.Cleanup(func() { // of a test that failed
		_ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name)
		for _, file := range files {
			_ = unix.Unmount(file, 0)
		}
	})
	bind()
	st.mark("ack-create")
	steps := script()
	st.record(t, steps)
	unbind()
	must(t, errors.Join(poolDisk.Remove(), storeDisk.Remove()))
	a, b := storeDisk.Replay(), poolDisk.Replay()
	places := func(r *pooltest.Replay) (at []int) {
		for i, e := range r.Entries {
			if e.Mark != "" && (len(at) > 0 || e.Mark == "ack-create") {
				at = append(at, i+1)
			}
		}
		return at
	}
	inA, inB := places(a), places(b)
	if len(inA) != len(inB) {
		t.Fatalf("%d marks in one log, %d in the other", len(inA), len(inB))
	}
	cuts := 0
	for i, n := range inA {
		mark := a.Entries[n-1].Mark
		if mark != b.Entries[inB[i]-1].Mark {
			t.Fatalf("mark %d: %s, %s", i, mark, b.Entries[inB[i]-1].Mark)
		}
		if !strings.HasPrefix(mark, "ack-") && !slices.Contains(cutAt, mark) {
			continue
		}
		cuts++
		a.CutAt(n, func() {
			b.CutAt(inB[i], func() {
				bind()
				defer unbind()
				count, where := acked(a, n)
				st.check(t, where, count, steps)
			})
		})
	}
	t.Logf("%d and %d entries, %d cuts", len(a.Entries), len(b.Entries), cuts)
}

// forgetCursor does what a reboot does to the place in the window of thin ids: pool/ids.go keeps it at the
// start of the lock file.
func forgetCursor(e *pooltest.Env) error {
	paths, err := filepath.Glob(filepath.Join(e.Dirs.Run, "lock", e.Name+"-*"))
	if err != nil || len(paths) != 1 {
		return errors.Join(err, fmt.Errorf("lock files: %v", paths))
	}
	f, err := os.OpenFile(paths[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(make([]byte, 80), 0)
	return errors.Join(err, f.Close())
}
