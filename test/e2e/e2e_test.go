// Package e2e_test compares what dmlayer makes of a large image with what other people's tools make of
// the same archive.
package e2e_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// source is the image, as scripts/images makes it, for both.
const source = "large.docker.tar"

// TestLargeEqualsUmoci loads the large image, and compares every entry of a snapshot of it with what skopeo
// and umoci unpack, and every layer's rebuilt tar with its diff id. One archive is of docker save, with
// plain layers; the other is an OCI archive with gzip layers.
func TestLargeEqualsUmoci(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.XFS, testenv.Images)
	for _, c := range []struct{ fs, archive string }{{"ext4", source}, {"xfs", "large.oci.tar"}} {
		t.Run(c.fs, func(t *testing.T) {
			// Before the pool, so that it is there when the pool's clean-up is done.
			want := unpackWithUmoci(t, fsutil.Type(c.fs))
			e := pooltest.New(t, pool.Spec{FS: c.fs})
			s := e.Open(t)
			i := load(t, s, imageFile(t, c.archive))
			rebuild(t, s, i)
			got := mountSnapshot(t, s, i.TopLayer())
			compare(t, got, want)
		})
	}
}

func imageFile(t *testing.T, name string) string {
	t.Helper()
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, "images", name)
}

// long returns a context for what takes a slow machine minutes.
func long(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(5*time.Minute))
	t.Cleanup(cancel)
	return ctx
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scratch mounts a file system of its own, of the kind that the pool has.
func scratch(t *testing.T, fs fsutil.Type) string {
	t.Helper()
	ctx := long(t)
	dir := t.TempDir()
	file, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, 8<<30))
	must(t, os.Mkdir(mnt, 0o700))
	loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file, Autoclear: true})
	must(t, err)
	defer loop.Close()
	must(t, fsutil.Mkfs(ctx, loop.Path, fsutil.MkfsOptions{Type: fs, Zeroed: true}))
	must(t, fsutil.Mount(ctx, loop.Path, mnt, fsutil.MountOptions{Type: fs}))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
		defer cancel()
		if err := fsutil.Unmount(ctx, mnt, fsutil.UnmountOptions{}); err != nil {
			t.Error(err)
		}
	})
	return mnt
}

// unpackWithUmoci unpacks the image onto a file system of its own.
func unpackWithUmoci(t *testing.T, fs fsutil.Type) string {
	t.Helper()
	bundle := filepath.Join(scratch(t, fs), "bundle")
	cmd := exec.CommandContext(long(t), "../../scripts/umoci-unpack", imageFile(t, source), bundle)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return filepath.Join(bundle, "rootfs")
}

func load(t *testing.T, s *layer.Store, archive string) image.Image {
	t.Helper()
	ctx := long(t)
	loaded, err := image.Load(ctx, s, archive, image.LoadOptions{})
	must(t, err)
	if len(loaded) != 1 {
		t.Fatalf("loaded %v, want one image", loaded)
	}
	i, err := image.Get(ctx, s, loaded[0].String())
	must(t, err)
	return i
}

// rebuild compares the rebuilt tar of each layer with what the image's config says.
func rebuild(t *testing.T, s *layer.Store, i image.Image) {
	t.Helper()
	var config struct {
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		} `json:"rootfs"`
	}
	must(t, json.Unmarshal(i.Config, &config))
	diffIDs := config.RootFS.DiffIDs
	if len(i.Layers) == 0 || len(i.Layers) != len(diffIDs) {
		t.Fatalf("%d layers, %d diff ids", len(i.Layers), len(diffIDs))
	}
	for n, l := range i.Layers {
		h := sha256.New()
		must(t, image.RebuildLayer(long(t), s, l.Name, h))
		if got := fmt.Sprintf("sha256:%x", h.Sum(nil)); got != diffIDs[n] {
			t.Errorf("layer %d was rebuilt as %s, and is %s", n, got, diffIDs[n])
		}
	}
}

// mountSnapshot mounts a snapshot of a layer, as a container has it.
func mountSnapshot(t *testing.T, s *layer.Store, top string) string {
	t.Helper()
	ctx := pooltest.Context(t)
	_, err := s.CreateSnapshot(ctx, "container", layer.SnapshotOptions{Parent: top})
	must(t, err)
	m, err := s.Mount(ctx, "container", "", layer.MountOptions{})
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(time.Minute))
		defer cancel()
		if err := s.Unmount(ctx, "container"); err != nil {
			t.Error(err)
		}
	})
	return m.Dir
}

func compare(t *testing.T, got, want string) {
	t.Helper()
	// An empty tree would equal another.
	entries := 0
	must(t, filepath.WalkDir(want, func(string, os.DirEntry, error) error { entries++; return nil }))
	if entries < 10000 {
		t.Errorf("umoci unpacked %d entries, want over 10000", entries)
	}
	differences, err := treecmp.Compare(got, want, treecmp.AgainstUmoci())
	must(t, err)
	if len(differences) > 0 {
		t.Errorf("dmlayer's tree differs from umoci's:\n%s", strings.Join(differences, "\n"))
	}
}
