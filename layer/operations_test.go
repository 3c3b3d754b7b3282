package layer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// An operation is one thing that can be interrupted, with what must be true before and after it. It
// works on nodes whose names begin with a prefix, so that one pool serves many rounds.
type operation struct {
	name string
	// prepare makes what the operation starts from.
	prepare func(t testing.TB, w *world)
	// run is the operation itself, in a child or here.
	run func(ctx context.Context, s *layer.Store, p string) error
	// done tells whether the operation has been done or not at all. Anything in between, or a loss of
	// what was there before, is an error.
	done func(ctx context.Context, w *world) (bool, error)
	// onXFS says that the file system matters, so that it is tried on xfs too.
	onXFS bool
	// again is what a second run returns after a first that was done; nil: it succeeds too.
	again error
}

// world is a pool with two layers, base and top, in which operations are interrupted.
type world struct {
	e *pooltest.Env
	s *layer.Store // opened before, and used all the time
	p string       // prefix of this round's nodes
}

var (
	baseFiles = map[string]string{"a": "1"}
	topFiles  = map[string]string{"a": "1", "b": "2"}
	snapFiles = map[string]string{"a": "1", "s": "of the snapshot"}
)

func newWorld(t *testing.T, fs string) *world {
	e := pooltest.New(t, pool.Spec{FS: fs})
	w := &world{e: e, s: e.Open(t)}
	makeLayer(t, w.s, "base", "", baseFiles)
	makeLayer(t, w.s, "top", "base", map[string]string{"b": "2"})
	// The document keeps prune from taking them.
	must(t, w.s.UpdateDocuments(pooltest.Context(t), func(tx *layer.DocTx) error {
		return tx.Put(layer.Document{Kind: "test", Key: "hold", Layers: []string{"base", "top"}, Data: []byte("{}")})
	}))
	return w
}

func (w *world) name(suffix string) string { return w.p + suffix }

// snapshot makes a snapshot of base with a file of its own.
func (w *world) snapshot(t testing.TB) {
	makeSnapshot(t, w.s, w.name("s"), "base")
	dir := mount(t, w.s, w.name("s"))
	must(t, writeFiles(dir, map[string]string{"s": "of the snapshot"}))
	unmount(t, w.s, w.name("s"))
}

// mounted makes such a snapshot and leaves it mounted.
func (w *world) mounted(t testing.TB) {
	w.snapshot(t)
	mount(t, w.s, w.name("s"))
}

// exists tells whether a node is there.
func (w *world) exists(ctx context.Context, name string) (bool, error) {
	_, err := w.s.Get(ctx, name)
	if errors.Is(err, layer.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}

// holds checks the files of a node, which must be there.
func (w *world) holds(ctx context.Context, name string, files map[string]string) error {
	return w.s.View(ctx, []string{name}, func(_ context.Context, roots []string) error {
		return sameFiles(name, roots[0], files)
	})
}

func sameFiles(what, dir string, files map[string]string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	have := map[string]string{}
	for _, e := range entries {
		text, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		have[e.Name()] = string(text)
	}
	if !maps.Equal(have, files) {
		return fmt.Errorf("%s holds %v, want %v", what, have, files)
	}
	return nil
}

// made is a done for what makes a node with these files.
func made(suffix string, files map[string]string) func(context.Context, *world) (bool, error) {
	return func(ctx context.Context, w *world) (bool, error) {
		ok, err := w.exists(ctx, w.name(suffix))
		if !ok || err != nil {
			return false, err
		}
		return true, w.holds(ctx, w.name(suffix), files)
	}
}

// and adds to a done what must be true either way.
func and(done func(context.Context, *world) (bool, error), check func(context.Context, *world) error) func(context.Context, *world) (bool, error) {
	return func(ctx context.Context, w *world) (bool, error) {
		ok, err := done(ctx, w)
		return ok, errors.Join(err, check(ctx, w))
	}
}

func snapshotWhole(ctx context.Context, w *world) error {
	return w.holds(ctx, w.name("s"), snapFiles)
}

// mountedAt tells whether a node is mounted in its default place.
func (w *world) mountedAt(ctx context.Context, name string) (bool, error) {
	i, err := w.s.Inspect(ctx, name)
	if err != nil {
		return false, err
	}
	if (i.State == layer.StateMounted) != (len(i.Mountpoints) > 0) {
		return false, fmt.Errorf("%s is %s and mounted on %v", name, i.State, i.Mountpoints)
	}
	return len(i.Mountpoints) > 0, nil
}

func nothing(testing.TB, *world) {}

// cleanUp removes this round's nodes.
func (w *world) cleanUp(t testing.TB) {
	ctx := pooltest.Context(t)
	infos, err := w.s.List(ctx)
	must(t, err)
	for _, i := range infos {
		if !strings.HasPrefix(i.Name, w.p) {
			continue
		}
		for _, dir := range i.Mountpoints {
			must(t, w.s.Unmount(ctx, dir))
		}
		must(t, w.s.Deactivate(ctx, i.Name, testClaim))
		if i, err = w.s.Inspect(ctx, i.Name); err == nil && len(i.Claims) > 0 {
			must(t, w.s.Detach(ctx, i.Name))
		}
		must(t, err)
	}
	left, err := filepath.Glob(w.e.MountPoint(w.p) + "*")
	must(t, err)
	for _, dir := range left { // of nodes that became layers while mounted; others are empty folders
		if err := w.s.Unmount(ctx, dir); err != nil && !errors.Is(err, layer.ErrNotFound) {
			t.Fatal(err)
		}
	}
	for len(infos) > 0 {
		infos, err = w.s.List(ctx)
		must(t, err)
		infos = slices.DeleteFunc(infos, func(i layer.Info) bool { return !strings.HasPrefix(i.Name, w.p) })
		for _, i := range infos {
			if err := w.s.Remove(ctx, i.Name); err != nil && !errors.Is(err, layer.ErrBusy) {
				t.Fatal(err)
			}
		}
	}
	// A fresh process knows all that is gone, and settles it with its first write.
	s, err := layer.Open(ctx, w.e.Config())
	must(t, err)
	must(t, s.UpdateDocuments(ctx, func(tx *layer.DocTx) error { return tx.Delete("test", w.p) }))
	must(t, s.Close())
}

// smallSize is a size whose template is not the pool's base template.
func smallSize(fs string) int64 {
	if fs == "xfs" {
		return 512 << 20
	}
	return 64 << 20
}

func fillWith(files map[string]string) func(context.Context, *layer.LayerWriter) error {
	return func(_ context.Context, w *layer.LayerWriter) error {
		blob, err := w.Blob("test")
		if err != nil {
			return err
		}
		if _, err := io.WriteString(blob, "side file"); err != nil {
			return err
		}
		return writeFiles(w.Root(), files)
	}
}

// nodeOperations are the operations on nodes.
func nodeOperations(fs string) []operation {
	return slices.Concat(makingOperations(fs), chainOperations(), usingOperations(), foreignOperations(), committingOperations(), changingOperations(), recordOperations(), userOperations(), claimingOperations(), trimmingOperations())
}

func makingOperations(fs string) []operation {
	return []operation{
		{
			name: "template", onXFS: true,
			prepare: func(t testing.TB, w *world) { // takes the template of the round before away
				_, err := w.s.Prune(pooltest.Context(t), false)
				must(t, err)
			},
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.CreateSnapshot(ctx, p+"s", layer.SnapshotOptions{Size: smallSize(fs)})
				return err
			},
			done: made("s", nil), again: layer.ErrExists,
		},
		{
			name: "fill", onXFS: true, prepare: nothing,
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.CreateLayer(ctx, p+"l", layer.LayerOptions{Parent: "base"}, fillWith(map[string]string{"f": "filled"}))
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := made("l", map[string]string{"a": "1", "f": "filled"})(ctx, w)
				if !ok || err != nil {
					return ok, err
				}
				r, err := w.s.OpenBlob(ctx, w.name("l"), "test")
				if err != nil {
					return true, err
				}
				defer r.Close()
				text, err := io.ReadAll(r)
				if err == nil && string(text) != "side file" {
					err = fmt.Errorf("side file holds %q", text)
				}
				return true, err
			},
			again: layer.ErrExists,
		},
		{
			name: "snapshot of layer", prepare: nothing,
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.CreateSnapshot(ctx, p+"s", layer.SnapshotOptions{Parent: "top"})
				return err
			},
			done: made("s", topFiles), again: layer.ErrExists,
		},
		{
			name: "snapshot of nothing", prepare: nothing,
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.CreateSnapshot(ctx, p+"s", layer.SnapshotOptions{})
				return err
			},
			done: made("s", nil), again: layer.ErrExists,
		},
		{
			name: "snapshot of mounted snapshot", onXFS: true, prepare: func(t testing.TB, w *world) { w.mounted(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.CreateSnapshot(ctx, p+"c", layer.SnapshotOptions{Parent: p + "s"})
				return err
			},
			done: and(made("c", snapFiles), stillMounted), again: layer.ErrExists,
		},
		{
			name: "window", prepare: func(t testing.TB, w *world) { loseCursor(t, w.e) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.CreateSnapshot(ctx, p+"s", layer.SnapshotOptions{Parent: "top"})
				return err
			},
			done: made("s", topFiles), again: layer.ErrExists,
		},
	}
}

func loseCursor(t testing.TB, e *pooltest.Env) { must(t, forgetCursor(e)) }

// stillMounted checks that a mounted snapshot is alive: it takes writes and is not frozen.
func stillMounted(ctx context.Context, w *world) error {
	i, err := w.s.Inspect(ctx, w.name("s"))
	if err != nil {
		return err
	}
	if len(i.Mountpoints) != 1 {
		return fmt.Errorf("the snapshot is mounted on %v", i.Mountpoints)
	}
	file := filepath.Join(i.Mountpoints[0], "w")
	if err := os.WriteFile(file, []byte("alive"), 0o600); err != nil {
		return err
	}
	if err := os.Remove(file); err != nil {
		return err
	}
	return sameFiles(w.name("s"), i.Mountpoints[0], snapFiles)
}

func usingOperations() []operation {
	return []operation{
		{
			name: "mount", onXFS: true, prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				_, err := s.Mount(ctx, p+"s", "", layer.MountOptions{})
				return err
			},
			done: and(func(ctx context.Context, w *world) (bool, error) { return w.mountedAt(ctx, w.name("s")) }, snapshotWhole),
		},
		{
			name: "mount a layer", prepare: nothing,
			run: func(ctx context.Context, s *layer.Store, _ string) error {
				_, err := s.Mount(ctx, "top", "", layer.MountOptions{})
				if err == nil {
					err = s.Unmount(ctx, "top")
				}
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := w.mountedAt(ctx, "top")
				if ok && err == nil {
					err = w.s.Unmount(ctx, "top")
				}
				return false, errors.Join(err, w.holds(ctx, "top", topFiles))
			},
		},
		{
			name: "unmount", prepare: func(t testing.TB, w *world) { w.mounted(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Unmount(ctx, p+"s") },
			done: and(func(ctx context.Context, w *world) (bool, error) {
				ok, err := w.mountedAt(ctx, w.name("s"))
				return !ok, err
			}, snapshotWhole),
			again: layer.ErrNotFound,
		},
		{
			name: "attach", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				path, err := s.Attach(ctx, p+"s", false)
				if err == nil {
					_, err = os.Stat(path)
				}
				return err
			},
			// A claim without a device is somebody's word all the same: attaching again makes the device.
			done: func(ctx context.Context, w *world) (bool, error) {
				i, err := w.s.Inspect(ctx, w.name("s"))
				return len(i.Claims) > 0, err
			},
		},
		{
			name: "detach",
			prepare: func(t testing.TB, w *world) {
				w.snapshot(t)
				_, err := w.s.Attach(pooltest.Context(t), w.name("s"), false)
				must(t, err)
			},
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Detach(ctx, p+"s") },
			done: func(ctx context.Context, w *world) (bool, error) {
				i, err := w.s.Inspect(ctx, w.name("s"))
				if err == nil && len(i.Claims) == 0 && i.State != layer.StateInactive {
					err = errors.New("not claimed, and active")
				}
				return len(i.Claims) == 0, err
			},
			again: layer.ErrNotFound,
		},
		{
			name: "view", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error {
				return s.View(ctx, []string{"top", p + "s"}, func(context.Context, []string) error { return nil })
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				for _, name := range []string{"top", w.name("s")} {
					if i, err := w.s.Inspect(ctx, name); err != nil || i.State != layer.StateInactive {
						return false, errors.Join(err, fmt.Errorf("%s is %s", name, i.State))
					}
				}
				return false, snapshotWhole(ctx, w)
			},
		},
		{
			name: "measure", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, _ string) error {
				infos, err := s.List(ctx)
				if err == nil {
					err = s.Measure(ctx, infos)
				}
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) { return false, snapshotWhole(ctx, w) },
		},
		{
			name: "remove", prepare: func(t testing.TB, w *world) { w.snapshot(t) },
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Remove(ctx, p+"s") },
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := made("s", snapFiles)(ctx, w)
				return !ok, err
			},
			again: layer.ErrNotFound,
		},
		{
			name: "remove what has much",
			prepare: func(t testing.TB, w *world) {
				makeSnapshot(t, w.s, w.name("s"), "base")
				writeMiB(t, mount(t, w.s, w.name("s")), "much", 3)
				unmount(t, w.s, w.name("s"))
			},
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Remove(ctx, p+"s") },
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := w.exists(ctx, w.name("s"))
				return !ok, err
			},
			again: layer.ErrNotFound,
		},
		{
			name: "remove what has much, later",
			prepare: func(t testing.TB, w *world) {
				makeSnapshot(t, w.s, w.name("s"), "base")
				writeMiB(t, mount(t, w.s, w.name("s")), "much", 3)
				unmount(t, w.s, w.name("s"))
			},
			run: func(ctx context.Context, s *layer.Store, p string) error {
				if _, err := s.RemoveNode(ctx, p+"s", layer.RemoveOptions{NoWait: true}); err != nil {
					return err
				}
				_, err := s.Reap(ctx, nil)
				return err
			},
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := w.exists(ctx, w.name("s"))
				return !ok, err
			},
			again: layer.ErrNotFound,
		},
		{
			name: "remove a layer with side files",
			prepare: func(t testing.TB, w *world) {
				_, err := w.s.CreateLayer(pooltest.Context(t), w.name("l"), layer.LayerOptions{Parent: "base"}, fillWith(nil))
				must(t, err)
			},
			run: func(ctx context.Context, s *layer.Store, p string) error { return s.Remove(ctx, p+"l") },
			done: func(ctx context.Context, w *world) (bool, error) {
				ok, err := made("l", baseFiles)(ctx, w)
				return !ok, err
			},
			again: layer.ErrNotFound,
		},
	}
}
