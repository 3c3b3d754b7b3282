package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"testing"
)

// TestRebuildOdd rebuilds layer tars that are odd in how they are written.
func TestRebuildOdd(t *testing.T) {
	for _, c := range []struct {
		name string
		tar  []byte
	}{
		{"empty file", nil},
		{"end marker only", tarOf()},
		{"no end marker", baseTar[:len(baseTar)-1024]},
		{"padding cut off", appTar[:1000]},
		{"a file twice", tarOf(file{name: "a", body: "first"}, file{name: "a", body: "second"})},
		{"a file and its whiteout", tarOf(file{name: "d/a", body: "first"}, file{name: "d/.wh.a"}, file{name: ".wh.b", body: "not empty"})},
		{"bytes after the end marker", append(tarOf(file{name: "a", body: "first"}), "more bytes"...)},
		{"a file in the place of another kind", tarOf(file{name: "a", body: "first"}, file{name: "a", kind: tar.TypeDir}, file{name: "a/b", body: "second"})},
	} {
		for _, kind := range []compression{plain, gzipped, zstded} {
			s := newFakeStore(t)
			i := testImage{layers: [][]byte{baseTar, c.tar}}
			if _, err := load(t.Context(), s, write(t, tarOf(ociFiles(kind, i)...)), LoadOptions{}); err != nil {
				t.Errorf("%s: %v", c.name, err)
				continue
			}
			var b bytes.Buffer
			if err := rebuild(t.Context(), s, i.layerName(1), &b); err != nil || !bytes.Equal(b.Bytes(), c.tar) {
				t.Errorf("%s: rebuilding: %v, %d bytes of %d", c.name, err, b.Len(), len(c.tar))
			}
		}
	}
}

func TestRebuildTellsDamage(t *testing.T) {
	s := newFakeStore(t)
	if _, err := load(t.Context(), s, write(t, tarOf(dockerFiles(plain, appImage)...)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	top := appImage.layerName(1)
	if err := os.WriteFile(s.root(top)+"/app", []byte("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := rebuild(t.Context(), s, top, &bytes.Buffer{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("changed file: %v", err)
	}
	delete(s.layers[top].blobs, blobTarSplit)
	if err := rebuild(t.Context(), s, top, &bytes.Buffer{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("no record: %v", err)
	}
	s.layers[top].node.Attrs = nil
	if err := rebuild(t.Context(), s, top, &bytes.Buffer{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("layer of somebody: %v", err)
	}
}
