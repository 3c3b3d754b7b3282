package image_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// goesOn loads an archive of which an interrupted load has left layers: none of them is unpacked again.
// It returns how many there were.
func goesOn(t *testing.T, s *layer.Store, source string, o image.LoadOptions) int {
	t.Helper()
	left := nodeNames(t, s)
	o.Progress = func(e image.Event) {
		if e.Stage != image.StageWaiting && e.Stage != image.StageExists && slices.Contains(left, e.Layer) {
			t.Errorf("%s, which was there: %s", e.Layer, e.Stage)
		}
	}
	if _, err := image.Load(pooltest.Context(t), s, source, o); err != nil {
		t.Error(err)
	}
	return len(left)
}

// checkLayers rebuilds the layers of a fixture that are there: they are whole, whoever was interrupted.
func checkLayers(t *testing.T, s *layer.Store, f image.Fixture) {
	t.Helper()
	for _, name := range nodeNames(t, s) {
		found := false
		for i, names := range f.Layers {
			n := slices.Index(names, name)
			if n < 0 {
				continue
			}
			found = true
			var b bytes.Buffer
			if err := image.RebuildLayer(pooltest.Context(t), s, name, &b); err != nil || !bytes.Equal(b.Bytes(), f.Tars[i][n]) {
				t.Errorf("%s: %d bytes (%v)", name, b.Len(), err)
			}
		}
		if !found {
			t.Errorf("left: %s", name)
		}
	}
}

func wipe(t *testing.T, s *layer.Store) {
	t.Helper()
	ctx := pooltest.Context(t)
	for _, i := range must[[]image.Image](t)(image.List(ctx, s)) {
		name := i.Ref
		if name == "" {
			name = i.ID
		}
		must[[]image.Removed](t)(image.Remove(ctx, s, name))
	}
	must[[]string](t)(s.Prune(ctx, false))
}

// TestInterruptedAnywhere ends a load at each of its events, as ^C does: the layers that are there are
// whole, and the next load goes on from them.
func TestInterruptedAnywhere(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env) {
		s, f := e.Open(t), image.TwoImages()
		source := archiveFile(t, f)
		left := map[int]bool{}
		for n := 1; ; n++ {
			ctx, cancel := context.WithCancel(pooltest.Context(t))
			events := 0
			_, err := image.Load(ctx, s, source, image.LoadOptions{Progress: func(image.Event) {
				if events++; events == n {
					cancel()
				}
			}})
			cancel()
			if err == nil && events < n {
				break
			}
			// The last event is of the last layer, which is there: the images may be too.
			if err != nil && !errors.Is(err, context.Canceled) {
				t.Fatalf("event %d: %v", n, err)
			}
			if images := must[[]image.Image](t)(image.List(pooltest.Context(t), s)); err != nil && len(images) > 0 {
				t.Errorf("event %d: listed %+v", n, images)
			}
			checkLayers(t, s, f)
			left[goesOn(t, s, source, image.LoadOptions{})] = true
			checkRebuild(t, s, f)
			wipe(t, s)
		}
		for n := range 4 {
			if !left[n] {
				t.Errorf("no interruption left %d layers: %v", n, left)
			}
		}
	})
}

// TestFullPool fills a pool with a load: the layers that are whole stay, and the load goes on once there
// is room.
func TestFullPool(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Feature(fs))
			e := pooltest.New(t, pool.Spec{FS: fs, DataSize: 256 << 20, Space: pool.Space{MinFree: -1}})
			s, ctx, f := e.Open(t), pooltest.Context(t), image.Heavy(3, 40<<20, true)
			must[layer.Node](t)(s.CreateSnapshot(ctx, "big", layer.SnapshotOptions{}))
			fillNode(t, s, "big", 140<<20)
			source := archiveFile(t, f)
			if _, err := image.Load(ctx, s, source, image.LoadOptions{}); !errors.Is(err, image.ErrNoSpace) {
				t.Fatalf("load: %v", err)
			}
			if err := s.Remove(ctx, "big"); err != nil {
				t.Fatal(err)
			}
			checkLayers(t, s, f)
			if n := goesOn(t, s, source, image.LoadOptions{}); n == 0 || n == 3 {
				t.Errorf("%d layers stayed", n)
			}
			checkRebuild(t, s, f)
		})
	}
}

// fillNode writes n bytes to a node.
func fillNode(t *testing.T, s *layer.Store, name string, n int64) {
	t.Helper()
	ctx := pooltest.Context(t)
	dir := t.TempDir()
	must[layer.Mounted](t)(s.Mount(ctx, name, dir, layer.MountOptions{}))
	file := must[*os.File](t)(os.Create(filepath.Join(dir, "fill")))
	random := must[*os.File](t)(os.Open("/dev/urandom"))
	defer random.Close()
	must[int64](t)(io.CopyN(file, random, n))
	if err := errors.Join(file.Sync(), file.Close(), s.Unmount(ctx, name)); err != nil {
		t.Fatal(err)
	}
}

// TestFullHost spools a stream where there is no room for it, and one whose order needs little.
func TestFullHost(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.Ext4)
	e := pooltest.New(t, pool.Spec{})
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=128m"); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	s, ctx := e.Open(t), pooltest.Context(t)
	for _, ordered := range []bool{false, true} {
		f := image.Heavy(6, 24<<20, ordered)
		_, err := image.Load(ctx, s, "-", image.LoadOptions{Input: bytes.NewReader(f.Archive), SpoolDir: dir})
		switch {
		case ordered && err != nil:
			t.Errorf("in order: %v", err)
		case !ordered && !errors.Is(err, image.ErrNoSpace):
			t.Errorf("layers first: %v", err)
		}
		checkLayers(t, s, f)
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil || st.Bfree != st.Blocks {
			t.Errorf("%d blocks of the spool are left (%v)", st.Blocks-st.Bfree, err)
		}
	}
}
