package image

import (
	"encoding/json"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// greedy are archives that ask for more memory than they have bytes.
func greedy() map[string]memTree {
	many := func(s string, n int) string { return strings.Repeat(s+",", n) + s }
	index := func(l *layout, ds ...ocispec.Descriptor) memTree { return treeOf(l.done(ds...)) }
	all := map[string]memTree{
		"descriptors in index.json":        {"index.json": `{"schemaVersion":2,"manifests":[` + many("{}", maxDocument/4) + `]}`},
		"descriptors, not too many commas": {"index.json": `{"schemaVersion":2,"manifests":[` + many("{}", maxValues-10) + `]}`},
		"entries in manifest.json":         {"manifest.json": `[` + many("{}", maxDocument/4) + `]`},
		"layers in manifest.json":          {"manifest.json": `[{"Config":"c","Layers":[` + many(`""`, maxDocument/4) + `]}]`},
		"history in a config":              {"manifest.json": `[{"Config":"c"}]`, "c": `{"history":[` + many("{}", maxDocument/4) + `]}`},
	}

	l := newLayout()
	layers := l.blob(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"config":{},"layers":[`+many("{}", maxDocument/4)+`]}`))
	all["descriptors in a manifest"] = index(l, layers)

	l = newLayout()
	var ds []ocispec.Descriptor
	padding := strings.Repeat(" ", 1<<20)
	for n := range 100 {
		ds = append(ds, l.blob(ocispec.MediaTypeImageManifest, fmt.Appendf(nil, `{"schemaVersion":2,"config":{"mediaType":"x"},"annotations":{"n":"%d"}%s}`, n, padding)))
	}
	all["hundred manifests of a megabyte"] = index(l, ds...)

	// The same config again and again: its bytes are few, its layers not.
	var ids, paths []string
	for n := range maxLayers {
		ids = append(ids, digest.FromString(fmt.Sprint(n)).String())
		paths = append(paths, "l")
	}
	config := must(json.Marshal(map[string]any{"os": "linux", "rootfs": map[string]any{"type": "layers", "diff_ids": ids}}))
	entry := must(json.Marshal(map[string]any{"Config": "c", "Layers": paths}))
	all["many images of many layers"] = memTree{"manifest.json": "[" + many(string(entry), 100) + "]", "c": string(config), "l": ""}
	return all
}

// TestGreedyDocuments refuses them, and takes little memory to do so.
func TestGreedyDocuments(t *testing.T) {
	for name, m := range greedy() {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := readArchive(t.Context(), m, "linux/amd64")
		runtime.ReadMemStats(&after)
		if errs.Class(err) != ErrDamaged {
			t.Errorf("%s: %.200v", name, err)
		}
		if len(err.Error()) > 2000 {
			t.Errorf("%s: an error of %d bytes", name, len(err.Error()))
		}
		if took := after.TotalAlloc - before.TotalAlloc; took > 160<<20 {
			t.Errorf("%s: allocated %d MiB in all", name, took>>20)
		}
	}
}

// TestManyImages loads as many as a large archive has.
func TestManyImages(t *testing.T) {
	l := newLayout()
	var ds []ocispec.Descriptor
	for n := range 500 {
		ds = append(ds, named(l.image(plain, testImage{layers: [][]byte{baseTar}, comment: fmt.Sprint(n)}), fmt.Sprintf("many:%d", n)))
	}
	images, err := readArchive(t.Context(), treeOf(l.done(ds...)), "linux/amd64")
	if err != nil || len(images) != 500 {
		t.Errorf("%d images (%v)", len(images), err)
	}
}
