package layer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// shutDown ends a mounted file system as a power cut does, with what was synced in its journal alone.
func shutDown(t testing.TB, dir string) {
	t.Helper()
	const goingDown, flushLog = 0x8004587d, 1 // FS_IOC_SHUTDOWN of ext4 and xfs
	f, err := os.Open(dir)
	must(t, err)
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), goingDown, flushLog))
	must(t, f.Close())
}

// A pool of which the kernel wants the metadata checked can be read: nothing of it changes, and everything that would change it is
// refused, and says what to do.
func TestNeedsCheckIsReadable(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		makeLayer(t, s, "base", "", baseFiles)
		makeSnapshot(t, s, "web", "base")
		dir := mount(t, s, "web")
		must(t, writeFiles(dir, map[string]string{"w": "of web"}))
		unmount(t, s, "web")
		dir = mount(t, s, "web")
		must(t, writeFiles(dir, map[string]string{"late": "in the journal"}))
		d, err := os.Open(filepath.Join(dir, "late"))
		must(t, err)
		must(t, errors.Join(d.Sync(), d.Close()))
		shutDown(t, dir)
		unmount(t, s, "web")
		m := stoppedMetadata(t, e)
		m.wantCheck()
		m.save()

		must(t, pool.Start(ctx, e.Dirs, e.Name))
		st, err := pool.Inspect(ctx, e.Dirs, e.Name)
		must(t, err)
		if st.State != pool.StateNeedsCheck {
			t.Errorf("state %q", st.State)
		}
		s = e.Open(t)
		nodes, err := s.List(ctx)
		must(t, err)
		must(t, s.Measure(ctx, nodes))
		if len(nodes) != 2 || *nodes[0].Used == 0 {
			t.Errorf("nodes %+v", nodes)
		}
		wantFiles(t, s, "base", baseFiles)
		want := map[string]string{"w": "of web"}
		for name, text := range baseFiles {
			want[name] = text
		}
		must(t, s.View(ctx, []string{"web"}, func(_ context.Context, roots []string) error {
			text, err := os.ReadFile(filepath.Join(roots[0], "w"))
			if string(text) != want["w"] {
				t.Errorf("viewed: %q", text)
			}
			return err
		}))
		mounted, err := s.Mount(ctx, "web", "", layer.MountOptions{ReadOnly: true})
		must(t, err)
		if text, err := os.ReadFile(filepath.Join(mounted.Dir, "w")); string(text) != want["w"] {
			t.Errorf("mounted: %q, %v", text, err)
		}
		unmount(t, s, "web")
		_, err = s.Attach(ctx, "web", true)
		must(t, err)
		must(t, s.Detach(ctx, "web"))

		for what, err := range map[string]error{
			"mount":    func() error { _, err := s.Mount(ctx, "web", "", layer.MountOptions{}); return err }(),
			"attach":   func() error { _, err := s.Attach(ctx, "web", false); return err }(),
			"snapshot": func() error { _, err := s.CreateSnapshot(ctx, "x", layer.SnapshotOptions{Parent: "base"}); return err }(),
			"layer":    func() error { _, err := s.CreateLayer(ctx, "y", layer.LayerOptions{}, fillWith(baseFiles)); return err }(),
			"commit":   func() error { _, err := s.Commit(ctx, "web", "z", layer.CommitOptions{}); return err }(),
			"remove":   s.Remove(ctx, "web"),
			"reset":    s.Reset(ctx, "web", "base"),
			"resize":   s.Resize(ctx, "web", 1<<40),
			"rename":   s.Rename(ctx, "web", "other"),
			"label":    s.Label(ctx, "web", map[string]string{"a": "b"}, nil),
			"document": s.UpdateDocuments(ctx, func(*layer.DocTx) error { return nil }),
		} {
			if mustFail(t, err, layer.ErrDamaged); err != nil && !strings.Contains(errs.Hint(err), "pool check") {
				t.Errorf("%s: %v; hint %q", what, err, errs.Hint(err))
			}
		}
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
		now, err := os.ReadFile(e.Metadata())
		must(t, err)
		if !slices.Equal(now, m.Bytes) {
			t.Error("reading has changed the metadata")
		}
		repair(t, e)
		s = e.Open(t)
		dir = mount(t, s, "web")
		if text, err := os.ReadFile(filepath.Join(dir, "late")); string(text) != "in the journal" {
			t.Errorf("after the repair: %q, %v", text, err)
		}
		unmount(t, s, "web")
	})
}
