package layer_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// chainOf returns layers of these names on a parent, each of which adds a file and a side file of its name.
func chainOf(parent string, names ...string) []layer.NewLayer {
	layers := make([]layer.NewLayer, len(names))
	for i, name := range names {
		layers[i] = layer.NewLayer{Name: name, Fill: func(_ context.Context, w *layer.LayerWriter) error {
			w.SetAttr("filled", name)
			blob, err := w.Blob("test")
			if err != nil {
				return err
			}
			if _, err := io.WriteString(blob, name); err != nil {
				return err
			}
			return writeFiles(w.Root(), map[string]string{name: "of " + name})
		}}
	}
	layers[0].Options.Parent = parent
	return layers
}

// wantChain checks what chainOf makes on base, of which these are the names.
func wantChain(ctx context.Context, s *layer.Store, names ...string) error {
	parent, files := "base", map[string]string{"a": "1"}
	for _, name := range names {
		files[name] = "of " + name
		n, err := s.Get(ctx, name)
		if err != nil {
			return err
		}
		if n.Parent != parent || n.Kind != layer.KindLayer || n.Attrs["filled"] != name {
			return fmt.Errorf("%+v is not on %s", n, parent)
		}
		r, err := s.OpenBlob(ctx, name, "test")
		if err != nil {
			return err
		}
		text, err := io.ReadAll(r)
		if err = errors.Join(err, r.Close()); err != nil || string(text) != name {
			return fmt.Errorf("side file of %s holds %q, %w", name, text, err)
		}
		err = s.View(ctx, []string{name}, func(_ context.Context, roots []string) error { return sameFiles(name, roots[0], files) })
		if err != nil {
			return err
		}
		parent = name
	}
	return nil
}

func madeNames(nodes []layer.Node) string {
	text := ""
	for _, n := range nodes {
		text += n.Name + " "
	}
	return text
}

// onEach runs a test on a pool with a layer base, of each file system.
func onEach(t *testing.T, fn func(t *testing.T, e *pooltest.Env, s *layer.Store)) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s := e.Open(t)
			makeLayer(t, s, "base", "", map[string]string{"a": "1"})
			fn(t, e, s)
		})
	}
}

// Layers of a chain are whole, each when the next one is begun; on ext4 one mount makes them all, and each
// is clean without its journal being replayed.
func TestChain(t *testing.T) {
	onEach(t, func(t *testing.T, _ *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		names := []string{"l1", "l2", "l3", "l4"}
		layers := chainOf("base", names...)
		layers[1].Options.Attrs = map[string]string{"given": "1", "filled": "not yet"}
		devices := map[uint64]bool{}
		for i := range layers {
			fill := layers[i].Fill
			layers[i].Fill = func(ctx context.Context, w *layer.LayerWriter) error {
				if err := wantChain(ctx, s, names[:i]...); err != nil {
					return err
				}
				var st unix.Stat_t
				if err := unix.Stat(w.Root(), &st); err != nil {
					return err
				}
				devices[st.Dev] = true
				return fill(ctx, w)
			}
		}
		before := s.Cost()
		made, err := s.CreateLayers(ctx, layers)
		must(t, err)
		if got := madeNames(made); got != "l1 l2 l3 l4 " {
			t.Errorf("made %q", got)
		}
		must(t, wantChain(ctx, s, names...))
		t.Logf("cost %+v to %+v", before, s.Cost())
		if fs := made[0].FS; fs == "ext4" && len(devices) != 1 {
			t.Errorf("%d devices", len(devices))
		}
		if layers[1].Options.Attrs["filled"] != "not yet" || made[1].Attrs["given"] != "1" {
			t.Errorf("attributes %v", made[1].Attrs)
		}
		for _, name := range names {
			mustBeClean(t, s, name)
		}
	})
}

// mustBeClean checks a layer's file system as it lies on the device, which stays read-only.
func mustBeClean(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	ctx := pooltest.Context(t)
	path, err := s.Attach(ctx, name, true)
	must(t, err)
	n, err := s.Get(ctx, name)
	must(t, err)
	if n.FS == "ext4" {
		needed, err := fsutil.NeedsRecovery(path, fsutil.Ext4)
		must(t, err)
		if needed {
			t.Errorf("%s has a journal to replay", name)
		}
		out, err := exec.CommandContext(ctx, "e2fsck", "-n", path).CombinedOutput()
		if err != nil || !strings.Contains(string(out), ": clean,") {
			t.Errorf("%s was not left clean: %v\n%s", name, err, out)
		}
		if out, err := exec.CommandContext(ctx, "e2fsck", "-fn", path).CombinedOutput(); err != nil {
			t.Errorf("e2fsck of %s: %v\n%s", name, err, out)
		}
	}
	must(t, s.Detach(ctx, name))
}

// What fails leaves the layers before it, and says which one it was.
func TestChainFails(t *testing.T) {
	onEach(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		ctx, cancel := context.WithCancel(pooltest.Context(t))
		defer cancel()
		broken := errors.New("broken")
		for name, fail := range map[string]struct {
			do    func(s *layer.Store) error
			class error
		}{
			"fill":           {func(*layer.Store) error { return broken }, broken},
			"parent removed": {func(s *layer.Store) error { return s.Remove(ctx, "l2") }, layer.ErrNotFound},
			"name taken": {func(s *layer.Store) error {
				_, err := s.CreateSnapshot(ctx, "l3", layer.SnapshotOptions{Parent: "base"})
				return err
			}, layer.ErrExists},
		} {
			t.Run(name, func(t *testing.T) {
				layers := chainOf("base", "l1", "l2", "l3", "l4")
				fill := layers[2].Fill
				layers[2].Fill = func(ctx context.Context, w *layer.LayerWriter) error {
					return errors.Join(fill(ctx, w), fail.do(s))
				}
				made, err := s.CreateLayers(ctx, layers)
				mustFail(t, err, fail.class)
				if got := madeNames(made); got != "l1 l2 " || !strings.Contains(fmt.Sprint(err), `create layer "l3"`) {
					t.Errorf("made %q, %v", got, err)
				}
				must(t, e.CheckLive(ctx))
				if name != "parent removed" {
					must(t, wantChain(ctx, s, "l1", "l2"))
				}
				for _, name := range []string{"l3", "l2", "l1"} {
					if err := s.Remove(ctx, name); err != nil {
						mustFail(t, err, layer.ErrNotFound)
					}
				}
			})
		}
		layers := chainOf("base", "l1", "l2")
		layers[1].Fill = func(context.Context, *layer.LayerWriter) error { cancel(); return nil }
		made, err := s.CreateLayers(ctx, layers)
		mustFail(t, err, context.Canceled)
		if got := madeNames(made); got != "l1 " {
			t.Errorf("made %q", got)
		}
		must(t, wantChain(pooltest.Context(t), s, "l1"))
		must(t, e.Check(pooltest.Context(t)))
	})
}

// A chain ends before a layer that is there, and refuses to begin with one.
func TestChainEndsEarly(t *testing.T) {
	onEach(t, func(t *testing.T, _ *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		if made, err := s.CreateLayers(ctx, nil); err != nil || len(made) > 0 {
			t.Errorf("no layers: %v, %v", made, err)
		}
		_, err := s.CreateLayers(ctx, chainOf("base", "l1", "a/b"))
		mustFail(t, err, layer.ErrInvalid)
		if _, err := s.Get(ctx, "l1"); !errors.Is(err, layer.ErrNotFound) {
			t.Errorf("begun with a name that is not valid further on: %v", err)
		}
		makeLayer(t, s, "l3", "base", nil)
		made, err := s.CreateLayers(ctx, chainOf("base", "l1", "l2", "l3", "l4"))
		must(t, err)
		if got := madeNames(made); got != "l1 l2 " {
			t.Errorf("made %q", got)
		}
		must(t, wantChain(ctx, s, "l1", "l2"))
		made, err = s.CreateLayers(ctx, chainOf("base", "l1", "l4"))
		mustFail(t, err, layer.ErrExists)
		if len(made) > 0 {
			t.Errorf("made %q", madeNames(made))
		}
		made, err = s.CreateLayers(ctx, chainOf("l2", "l5", "l5"))
		must(t, err)
		if got := madeNames(made); got != "l5 " {
			t.Errorf("made %q", got)
		}
	})
}

// A larger layer in the middle of a chain is on a larger device; a smaller one is refused.
func TestChainGrows(t *testing.T) {
	onEach(t, func(t *testing.T, _ *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		base, err := s.Get(ctx, "base")
		must(t, err)
		larger := base.Size + 64<<20
		layers := chainOf("base", "l1", "l2", "l3", "l4")
		layers[1].Options.Size = larger
		layers[2].Options.Size = larger
		made, err := s.CreateLayers(ctx, layers)
		must(t, err)
		for i, want := range []int64{base.Size, larger, larger, larger} {
			if made[i].Size != want {
				t.Errorf("%s has %d bytes, want %d", made[i].Name, made[i].Size, want)
			}
		}
		must(t, wantChain(ctx, s, "l1", "l2", "l3", "l4"))
		must(t, s.View(ctx, []string{"l2"}, func(ctx context.Context, roots []string) error {
			size, err := fsutil.Size(ctx, roots[0])
			if err == nil && size.FS < uint64(base.Size) {
				err = fmt.Errorf("the file system has %d bytes", size.FS)
			}
			return err
		}))
		layers = chainOf("l4", "l5", "l6")
		layers[1].Options.Size = base.Size
		made, err = s.CreateLayers(ctx, layers)
		mustFail(t, err, layer.ErrInvalid)
		if got := madeNames(made); got != "l5 " {
			t.Errorf("made %q", got)
		}
	})
}

// An ext4 without a journal is not clean while it is mounted, however it is frozen.
func TestChainWithoutJournal(t *testing.T) {
	e := pooltest.New(t, pool.Spec{MkfsOptions: []string{"-O", "^has_journal"}, BaseSize: 64 << 20}) // a larger one gets a journal in any case
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", map[string]string{"a": "1"})
	_, err := s.CreateLayers(ctx, chainOf("base", "l1", "l2"))
	must(t, err)
	must(t, wantChain(ctx, s, "l1", "l2"))
	for _, name := range []string{"l1", "l2"} {
		mustBeClean(t, s, name)
	}
}

// The pool says whether archives may bring device nodes.
func TestDevicesForbidden(t *testing.T) {
	for _, forbid := range []bool{false, true} {
		e := pooltest.New(t, pool.Spec{ForbidDevices: forbid})
		s := e.Open(t)
		_, err := s.CreateLayer(pooltest.Context(t), "l", layer.LayerOptions{}, func(_ context.Context, w *layer.LayerWriter) error {
			if w.DevicesForbidden() != forbid {
				t.Errorf("forbidden: %v, want %v", w.DevicesForbidden(), forbid)
			}
			return nil
		})
		must(t, err)
		st, err := s.PoolStatus(pooltest.Context(t))
		must(t, err)
		if st.ForbidDevices != forbid {
			t.Errorf("status says %v, want %v", st.ForbidDevices, forbid)
		}
	}
}
