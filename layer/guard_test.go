package layer_test

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// A promise that was made stands when somebody else asks for it again and fails.
func TestAttachAgainCancelled(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "vm", "")
	path, err := s.Attach(ctx, "vm", false)
	must(t, err)
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := s.Attach(cancelled, "vm", false); err == nil {
		t.Error("attached with a context that has ended")
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the first one's device: %v", err)
	}
	i, err := s.Inspect(ctx, "vm")
	must(t, err)
	if len(i.Claims) != 1 {
		t.Errorf("claims: %v", i.Claims)
	}
	must(t, s.Detach(ctx, "vm"))
}

// A node whose raw device somebody has is not trusted on the word of a mount that fails.
func TestTrustOfAttached(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "vm", "")
	_, err := s.Attach(ctx, "vm", false)
	must(t, err)
	_, err = s.Mount(ctx, "vm", "", layer.MountOptions{Trust: true})
	mustFail(t, err, layer.ErrBusy)
	must(t, s.Detach(ctx, "vm"))
	_, err = s.Mount(ctx, "vm", "", layer.MountOptions{})
	mustFail(t, err, layer.ErrDamaged)
	_, err = s.Mount(ctx, "vm", "", layer.MountOptions{Trust: true})
	must(t, err)
	must(t, s.Unmount(ctx, "vm"))
}

// A device that was given out for reading is not made writable by anything.
func TestReadOnlyAttachmentStays(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "vm", "")
	path, err := s.Attach(ctx, "vm", true)
	must(t, err)
	must(t, s.Resize(ctx, "vm", 2<<30))
	_, err = s.Mount(ctx, "vm", "", layer.MountOptions{})
	mustFail(t, err, layer.ErrBusy)
	f, err := os.Open(path)
	must(t, err)
	readOnly, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKROGET)
	must(t, err)
	must(t, f.Close())
	if readOnly != 1 {
		t.Error("the device can be written to")
	}
	must(t, s.Detach(ctx, "vm"))
	dir := mount(t, s, "vm")
	size, err := fsutil.Size(ctx, dir)
	must(t, err)
	if size.FS < 2<<30-1<<20 {
		t.Errorf("grown to %d", size.FS)
	}
	unmount(t, s, "vm")
}

// Unmounting a node never takes away what was mounted over it.
func TestUnmountCovered(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	dir := t.TempDir()
	for _, name := range []string{"below", "above"} {
		makeSnapshot(t, s, name, "")
		_, err := s.Mount(ctx, name, dir, layer.MountOptions{})
		must(t, err)
	}
	mustFail(t, s.Unmount(ctx, "below"), layer.ErrBusy)
	must(t, s.Unmount(ctx, "above"))
	must(t, s.Unmount(ctx, dir))
}

// Another root's pool may share the run directory and the names in it.
func TestSharedRunDirectory(t *testing.T) {
	a := pooltest.New(t, pool.Spec{})
	b := &pooltest.Env{Dirs: pool.Dirs{Root: filepath.Join(t.TempDir(), "root"), Run: a.Dirs.Run}, Name: a.Name}
	ctx := pooltest.Context(t)
	must(t, pool.Create(ctx, b.Dirs, pool.Spec{Name: b.Name, DataSize: 1 << 30, BaseSize: 256 << 20}))
	sa, err := layer.Open(ctx, a.Config())
	must(t, err)
	sb, err := layer.Open(ctx, b.Config())
	must(t, err)
	makeSnapshot(t, sa, "vm", "")
	makeSnapshot(t, sb, "vm", "")
	path, err := sa.Attach(ctx, "vm", false)
	must(t, err)
	before, err := os.Readlink(path)
	must(t, err)
	_, err = sb.Attach(ctx, "vm", false)
	mustFail(t, err, layer.ErrBusy)
	must(t, sb.Remove(ctx, "vm"))
	if after, err := os.Readlink(path); err != nil || after != before {
		t.Errorf("the link leads to %q, %v", after, err)
	}
	must(t, sa.Detach(ctx, "vm"))
	for _, s := range []*layer.Store{sa, sb} {
		makeSnapshot(t, s, "web", "")
	}
	mount(t, sa, "web")
	_, err = sb.Mount(ctx, "web", "", layer.MountOptions{})
	mustFail(t, err, layer.ErrBusy)
	must(t, sa.Unmount(ctx, "web"))
	must(t, sb.Close())
	must(t, pool.Destroy(ctx, b.Dirs, b.Name))
	must(t, sa.Close())
}

// A node cannot become its own ancestor.
func TestResetNoCycle(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "s", "")
	makeSnapshot(t, s, "child", "s")
	_, err := s.Commit(ctx, "child", "l", layer.CommitOptions{})
	must(t, err)
	mustFail(t, s.Reset(ctx, "s", "l"), layer.ErrInvalid)
	_, err = s.CreateSnapshot(ctx, "x", layer.SnapshotOptions{Kind: layer.KindLayer})
	mustFail(t, err, layer.ErrInvalid)
}

// A layer that a reset made the child of a younger one goes before it.
func TestPruneOrder(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "s", "")
	makeLayer(t, s, "young", "", nil)
	must(t, s.Reset(ctx, "s", "young"))
	_, err := s.Commit(ctx, "s", "moved", layer.CommitOptions{Move: true})
	must(t, err)
	gone, err := s.Prune(ctx, false)
	must(t, err)
	if !slices.Equal(gone, []string{"moved", "young"}) {
		t.Errorf("pruned %v", gone)
	}
}

// The run directory may be cleaned while a process works: whoever then records under locks that keep
// nobody out is told so.
func TestRunDirectoryCleanedUnderAnOperation(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	_, err := s.CreateLayer(ctx, "l", layer.LayerOptions{}, func(context.Context, *layer.LayerWriter) error {
		return unix.Unlink(e.LockFile(t))
	})
	mustFail(t, err, layer.ErrDamaged)
	_, err = s.Get(ctx, "l")
	mustFail(t, err, layer.ErrNotFound)
	makeLayer(t, s, "l", "", nil)
}
