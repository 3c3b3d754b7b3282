package containerd_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

// TestImport compares what containerd imports with what image load makes of the same archive, which test/e2e compares with what umoci unpacks. The large image is
// left to the long form, and to releases that unpack with our differ: containerd 1.6 gives files with hard links what the last link's entry says, and loses attributes of directories.
func TestImport(t *testing.T) {
	images := []string{"small"}
	if os.Getenv("DMLAYER_TEST_LONG") != "" {
		images = append(images, "large")
	}
	for _, r := range releases {
		for _, name := range images {
			if name == "large" && !r.diff {
				continue
			}
			t.Run(r.name+"/"+name, func(t *testing.T) {
				h := newHost(t, r, pool.Spec{DataSize: 4 << 30})
				h.imports(imageFile(t, name+".oci.tar"))
			})
		}
	}
}

func (h *host) imports(file string) {
	h.t.Helper()
	ctx := pooltest.Context(h.t)
	imported := h.load(file)
	theirs := h.topLayer(ctx)
	loaded, err := image.Load(ctx, h.store, file, image.LoadOptions{})
	must(h.t, err)
	must(h.t, h.store.View(ctx, []string{h.top(ctx), theirs}, func(_ context.Context, roots []string) error {
		found, err := treecmp.Compare(roots[0], roots[1], h.unlikeImageLoad(roots[0]))
		for _, d := range found {
			h.t.Error(d)
		}
		return err
	}))
	for _, l := range loaded {
		_, err := image.Remove(ctx, h.store, l.String())
		must(h.t, err)
	}
	h.ctr("images", "rm", "--sync", imported)
	if n := h.nodes(); n != 0 {
		h.t.Errorf("%d nodes are left", n)
	}
}

// unlikeImageLoad says what containerd's own differ does its own way, where ours is not asked: directories that a layer does not name get the time of the
// unpacking, and files with hard links the time of the last link.
func (h *host) unlikeImageLoad(root string) treecmp.Options {
	if h.r.diff {
		return treecmp.Options{}
	}
	return treecmp.Options{IgnoreTimes: func(rel string) bool {
		fi, err := os.Lstat(filepath.Join(root, rel))
		return rel == "." || err == nil && (fi.IsDir() || fi.Sys().(*syscall.Stat_t).Nlink > 1)
	}}
}

// topLayer returns the layer that no other one stands on.
func (h *host) topLayer(ctx context.Context) string {
	h.t.Helper()
	all, err := h.store.List(ctx)
	must(h.t, err)
	parents := map[string]bool{}
	for _, i := range all {
		parents[i.Parent] = true
	}
	var tops []string
	for _, i := range all {
		if !parents[i.Name] && i.Kind == layer.KindLayer {
			tops = append(tops, i.Name)
		}
	}
	if len(tops) != 1 {
		h.t.Fatalf("the highest layers are %s", strings.Join(tops, ", "))
	}
	return tops[0]
}
