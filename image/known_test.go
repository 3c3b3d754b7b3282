package image

import (
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
)

// countingTree counts the bytes that are read of each file.
type countingTree struct {
	tree
	mu   sync.Mutex
	read map[string]int
}

type countingBytes struct {
	io.ReaderAt
	name string
	to   *countingTree
}

func (t *countingTree) open(ctx context.Context, name string) (*blob, error) {
	b, err := t.tree.open(ctx, name)
	if err != nil {
		return nil, err
	}
	b.ReaderAt = countingBytes{b.ReaderAt, name, t}
	return b, nil
}

func (c countingBytes) ReadAt(p []byte, at int64) (int, error) {
	n, err := c.ReaderAt.ReadAt(p, at)
	c.to.mu.Lock()
	defer c.to.mu.Unlock()
	c.to.read[c.name] += n
	return n, err
}

// loadCounted loads files, and returns how many bytes of layers were read, and the stages that were told.
func loadCounted(t *testing.T, s *fakeStore, files []file) (layers int, stages []Stage) {
	t.Helper()
	tree := &countingTree{tree: treeOf(files), read: map[string]int{}}
	l := newLoader(s, tree, newReporter(func(e Event) {
		if len(stages) == 0 || stages[len(stages)-1] != e.Stage {
			stages = append(stages, e.Stage)
		}
	}))
	if _, err := l.load(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	paths := map[string]bool{}
	for _, a := range l.images {
		for _, lay := range a.layers {
			paths[lay.path] = true
		}
	}
	for name, n := range tree.read {
		if paths[name] {
			layers += n
		}
	}
	return layers, stages
}

// TestOnePass reads each layer once, and its first bytes twice.
func TestOnePass(t *testing.T) {
	for _, kind := range []compression{plain, gzipped, zstded} {
		for name, files := range map[string][]file{"docker": dockerFiles(kind, appImage), "oci": ociFiles(kind, appImage)} {
			size := len(pack(kind, baseTar)) + len(pack(kind, appTar))
			n, stages := loadCounted(t, newFakeStore(t), files)
			if n != size+2*6 {
				t.Errorf("%s %q: read %d bytes of layers of %d", name, kind, n, size)
			}
			if want := []Stage{StageWaiting, StageUnpack, StageDone, StageUnpack, StageDone}; !slices.Equal(stages, want) {
				t.Errorf("%s %q: stages %q, want %q", name, kind, stages, want)
			}
		}
	}
}

// TestKnownLayersAreNotRead loads an archive whose layers are there: nothing of them is read unless there
// is something to find out.
func TestKnownLayersAreNotRead(t *testing.T) {
	docker := func(kind compression) []file { return dockerFiles(kind, appImage) }
	oci := func(kind compression) []file { return ociFiles(kind, appImage) }
	forgetSizes := func(s *fakeStore) {
		for _, l := range s.layers {
			delete(l.node.Attrs, attrSize)
		}
	}
	for _, c := range []struct {
		name          string
		first, second []file
		change        func(s *fakeStore)
		read          bool
	}{
		{"docker, plain", docker(plain), docker(plain), nil, false},
		{"docker, gzip", docker(gzipped), docker(gzipped), nil, false},
		{"oci", oci(gzipped), oci(gzipped), nil, false},
		{"oci, packed in another way", oci(gzipped), oci(zstded), nil, false},
		{"docker after oci", oci(gzipped), docker(plain), nil, false},
		{"docker, packed in another way", docker(gzipped), docker(zstded), nil, true},
		{"without sizes, recorded", oci(gzipped), oci(gzipped), forgetSizes, false},
		{"without sizes or records", oci(gzipped), oci(gzipped), func(s *fakeStore) { forgetSizes(s); clear(s.docs) }, true},
		{"without records", docker(gzipped), docker(gzipped), func(s *fakeStore) { clear(s.docs) }, false},
	} {
		s := newFakeStore(t)
		loadCounted(t, s, c.first)
		checkApp(t, s)
		if c.change != nil {
			c.change(s)
		}
		n, stages := loadCounted(t, s, c.second)
		if (n > 0) != c.read || slices.Contains(stages, StageVerify) != c.read {
			t.Errorf("%s: read %d bytes of layers, stages %q", c.name, n, stages)
		}
		if len(s.fills) != 2 {
			t.Errorf("%s: unpacked %q", c.name, s.fills)
		}
	}
}

// TestEventsForBars tells of every layer beforehand, with its size, and keeps its position.
func TestEventsForBars(t *testing.T) {
	s := newFakeStore(t)
	files := ociFiles(gzipped, appImage, otherImage)
	var waiting []string
	ended := map[string]Stage{}
	_, err := load(t.Context(), s, write(t, tarOf(files...)), LoadOptions{Progress: func(e Event) {
		switch {
		case e.Stage == StageWaiting:
			if e.Position != len(waiting) || e.Count != 3 || e.Total == 0 || len(ended) > 0 {
				t.Errorf("%+v", e)
			}
			waiting = append(waiting, e.Layer)
		case waiting[e.Position] != e.Layer || e.Count != 3 || e.Done > e.Total || ended[e.Layer] != "":
			t.Errorf("%+v after %q", e, ended[e.Layer])
		case e.Stage == StageDone || e.Stage == StageExists:
			ended[e.Layer] = e.Stage
		}
	}})
	if err != nil || len(waiting) != 3 || len(ended) != 3 {
		t.Errorf("%v: waiting %s, ended %v", err, strings.Join(waiting, " "), ended)
	}
}
