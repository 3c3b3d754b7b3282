package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"testing"
)

// manifestFirst is a docker archive as a stream may have it, with the config after the layers. Where a layer's
// content came before, the layer is a link, as docker save has written them.
func manifestFirst(kind compression, images ...testImage) []file {
	var entries []map[string]any
	var layers, configs []file
	paths := map[string]string{}
	for _, i := range images {
		config := i.comment + "config.json"
		var names []string
		for n, l := range i.layers {
			name := i.comment + string(rune('a'+n)) + "/layer.tar"
			if names = append(names, name); paths[string(l)] != "" {
				layers = append(layers, file{name: name, kind: tar.TypeSymlink, link: "../" + paths[string(l)]})
				continue
			}
			paths[string(l)] = name
			layers = append(layers, file{name: name, body: string(pack(kind, l))})
		}
		configs = append(configs, file{name: config, body: string(i.config())})
		entries = append(entries, map[string]any{"Config": config, "RepoTags": i.refs, "Layers": names})
	}
	manifest := file{name: "manifest.json", body: string(must(json.Marshal(entries)))}
	return append(append([]file{manifest}, layers...), configs...)
}

func loadStream(t *testing.T, s *fakeStore, files []file) {
	t.Helper()
	o := LoadOptions{Input: bytes.NewReader(tarOf(files...)), SpoolDir: t.TempDir()}
	if _, err := load(t.Context(), s, "-", o); err != nil {
		t.Fatal(err)
	}
}

// TestStreamLinks has layers that are links to others, whose bytes must not be let go before.
func TestStreamLinks(t *testing.T) {
	for _, kind := range []compression{plain, gzipped} {
		s := newFakeStore(t)
		first := testImage{layers: [][]byte{baseTar, otherTar, baseTar}, refs: []string{"first"}}
		second := testImage{layers: [][]byte{baseTar, baseTar}, refs: []string{"second"}, comment: "second"}
		loadStream(t, s, manifestFirst(kind, first, second))
		if len(s.fills) != 4 {
			t.Errorf("unpacked %q", s.fills)
		}
	}
}

// TestStreamPackedInAnotherWay has layers that are there, of which only their bytes tell the digest.
func TestStreamPackedInAnotherWay(t *testing.T) {
	s := newFakeStore(t)
	loadStream(t, s, manifestFirst(gzipped, appImage))
	loadStream(t, s, manifestFirst(zstded, appImage))
	if len(s.fills) != 2 {
		t.Errorf("unpacked %q", s.fills)
	}
}
