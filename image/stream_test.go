package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// noisyTar is a layer of one file of n bytes, none of them in a run of zeros.
func noisyTar(name string, n int) []byte {
	noise := bytes.Repeat([]byte(digest.FromString(name).Encoded()), 1024)
	return tarOf(file{name: name, body: string(bytes.Repeat(noise, n/len(noise)+1)[:n])})
}

// inOrder returns the files of an OCI layout of one image in the order of which a stream needs no spool:
// index, manifest, config, layers.
func inOrder(kind compression, i testImage) []file {
	return sortedBy(ociFiles(kind, i), func(f file) int { return layoutOrder(f, kind, i) })
}

func layoutOrder(f file, kind compression, i testImage) int {
	for n, l := range i.layers {
		if f.name == blobName(pack(kind, l)) {
			return 10 + n
		}
	}
	switch {
	case f.name == "index.json":
		return 0
	case f.name == "oci-layout":
		return 99 // nobody waits for it
	case f.name == blobName(i.config()):
		return 2
	}
	return 1
}

func sortedBy(files []file, key func(f file) int) []file {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b file) int { return key(a) - key(b) })
	return files
}

// TestStreamOrders loads a stream in every order of its files: what comes of it is always the same.
func TestStreamOrders(t *testing.T) {
	needed := func(files []file) []file {
		return slices.DeleteFunc(files, func(f file) bool {
			return f.kind != 0 || strings.HasSuffix(f.name, "VERSION") || f.name == "repositories" || f.name == "oci-layout"
		})
	}
	for _, files := range [][]file{needed(ociFiles(gzipped, appImage)), needed(dockerFiles(plain, appImage))} {
		permutations(files, func(files []file) {
			s := newFakeStore(t)
			o := LoadOptions{Input: bytes.NewReader(tarOf(files...)), SpoolDir: t.TempDir()}
			if _, err := load(t.Context(), s, "-", o); err != nil {
				t.Fatalf("%v: %v", names(files), err)
			}
			checkApp(t, s)
			if len(s.fills) != 2 {
				t.Errorf("%v: unpacked %q", names(files), s.fills)
			}
			os.RemoveAll(s.dir)
		})
	}
}

func names(files []file) []string {
	var all []string
	for _, f := range files {
		all = append(all, f.name)
	}
	return all
}

// permutations calls fn with all orders of files.
func permutations(files []file, fn func([]file)) {
	var permute func(n int)
	permute = func(n int) {
		if n == len(files) {
			fn(files)
			return
		}
		for i := n; i < len(files); i++ {
			files[n], files[i] = files[i], files[n]
			permute(n + 1)
			files[n], files[i] = files[i], files[n]
		}
	}
	permute(0)
}

// TestStreamIsUnpackedAsItComes gives the end of a stream only when the layers before it are there.
func TestStreamIsUnpackedAsItComes(t *testing.T) {
	for _, kind := range []compression{plain, gzipped, zstded} {
		s := newFakeStore(t)
		files := inOrder(kind, appImage)
		files = slices.Insert(files, len(files)-1, file{name: "filler", body: strings.Repeat("more than a chunk ", 100000)})
		data := tarOf(files...)
		last := bytes.Index(data, []byte("oci-layout"))
		r, w := io.Pipe()
		there := make(chan struct{})
		go func() {
			_, err := w.Write(data[:last])
			<-there
			if err == nil {
				_, err = w.Write(data[last:])
			}
			w.CloseWithError(err)
		}()
		o := LoadOptions{Input: r, SpoolDir: t.TempDir(), Progress: func(e Event) {
			if e.Stage == StageDone && e.Position == 1 {
				close(there)
			}
		}}
		if _, err := load(t.Context(), s, "-", o); err != nil {
			t.Fatalf("%q: %v", kind, err)
		}
		checkApp(t, s)
	}
}

// TestStreamLetsGo wants the room of layers back that were unpacked as they came.
func TestStreamLetsGo(t *testing.T) {
	i := testImage{layers: [][]byte{noisyTar("a", 40<<20), noisyTar("bb", 40<<20), noisyTar("ccc", 40<<20)}, refs: []string{"big"}}
	s := newFakeStore(t)
	tree, err := openStream(t.Context(), io.NopCloser(bytes.NewReader(tarOf(inOrder(plain, i)...))), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	most := int64(0)
	l := newLoader(s, tree, newReporter(func(Event) {
		var st syscall.Stat_t
		if err := syscall.Fstat(int(tree.(*streamTree).spool.f.Fd()), &st); err != nil {
			t.Error(err)
		}
		most = max(most, st.Blocks*512)
	}))
	if _, err := l.load(t.Context(), ""); err != nil {
		t.Fatal(err)
	}
	if whole, limit := int64(3*40<<20), int64(48<<20+spoolAhead); most > limit || limit >= whole {
		t.Errorf("the spool took %d bytes, want at most %d of %d", most, limit, whole)
	}
}

// TestStreamCutOff cuts a stream at many places: nothing is left.
func TestStreamCutOff(t *testing.T) {
	for _, kind := range []compression{plain, gzipped} {
		data := tarOf(inOrder(kind, appImage)...)
		end := bytes.Index(data, pack(kind, appTar)) + len(pack(kind, appTar)) // what follows is of no use
		for n := 1; n < end; n += 256 {
			s := newFakeStore(t)
			_, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(data[:n]), SpoolDir: t.TempDir()})
			if errs.Class(err) != ErrDamaged {
				t.Errorf("%d bytes of %d: %v", n, len(data), err)
			}
			s.checkEmpty(t)
		}
	}
}

// TestStreamThatBreaks has a source that fails: the whole layers stay.
func TestStreamThatBreaks(t *testing.T) {
	s := newFakeStore(t)
	data := tarOf(inOrder(plain, appImage)...)
	at := bytes.Index(data, appTar) + 600
	_, err := load(t.Context(), s, "-", LoadOptions{Input: io.MultiReader(bytes.NewReader(data[:at]), failingReader{}), SpoolDir: t.TempDir()})
	if !errors.Is(err, os.ErrDeadlineExceeded) || errs.Class(err) != nil {
		t.Errorf("load: %v", err)
	}
	if got := s.names(); !slices.Equal(got, []string{appImage.layerName(0)}) {
		t.Errorf("left: %q", got)
	}
	if _, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(data), SpoolDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	checkApp(t, s)
	if len(s.fills) != 3 {
		t.Errorf("unpacked %q", s.fills)
	}
}

// TestStreamPromisesMore has an index first and, in the end, a manifest.json that names another image: as
// in a file, that is what counts.
func TestStreamPromisesMore(t *testing.T) {
	files := inOrder(plain, appImage)
	config := otherImage.config()
	entry := map[string]any{"Config": "other.json", "RepoTags": []string{"other"}, "Layers": []string{blobName(baseTar), "other.tar"}}
	files = append(files, file{name: "other.json", body: string(config)}, file{name: "other.tar", body: string(otherTar)},
		file{name: "manifest.json", body: string(must(json.Marshal([]any{entry})))})
	s := newFakeStore(t)
	loaded, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(tarOf(files...)), SpoolDir: t.TempDir()})
	if want := []Loaded{{"other", otherImage.id()}}; err != nil || !slices.Equal(loaded, want) {
		t.Fatalf("loaded %v (%v), want %v", loaded, err, want)
	}
	if got, want := s.names(), slices.Sorted(maps.Keys(map[string]bool{otherImage.layerName(0): true, otherImage.layerName(1): true})); !slices.Equal(got, want) {
		t.Errorf("left %q, want %q", got, want)
	}
}

// TestStreamLayerTwice needs a file for two layers, and one whose tar no record brings back: the bytes
// are there as long as somebody needs them.
func TestStreamLayerTwice(t *testing.T) {
	odd := tarOf(file{name: "a", body: "first"}, file{name: "a", body: "second"})
	i := testImage{layers: [][]byte{baseTar, odd, odd, otherTar, baseTar}, refs: []string{"twice"}}
	s := newFakeStore(t)
	if _, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(tarOf(inOrder(gzipped, i)...)), SpoolDir: t.TempDir()}); err != nil {
		t.Fatal(err)
	}
	for n, want := range i.layers {
		var b bytes.Buffer
		if err := rebuild(t.Context(), s, i.layerName(n), &b); err != nil || !bytes.Equal(b.Bytes(), want) {
			t.Errorf("layer %d: %v", n, err)
		}
	}
}

// TestStreamAgainstRemoval removes a layer that was unpacked as it came by, for good.
func TestStreamAgainstRemoval(t *testing.T) {
	s := newFakeStore(t)
	times := 0
	s.beforeUpdate = func() {
		if times++; times == 1 {
			_ = s.Remove(context.Background(), appImage.layerName(1))
		}
	}
	data := tarOf(inOrder(gzipped, appImage)...)
	if _, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(data), SpoolDir: t.TempDir()}); !errors.Is(err, ErrBusy) || errs.Hint(err) == "" {
		t.Errorf("load: %v", err)
	}
	s.beforeUpdate = nil
	if _, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(data), SpoolDir: t.TempDir()}); err != nil {
		t.Error(err)
	}
	checkApp(t, s)
}

// TestStreamWithOldLayers finds the layers of a stream there, with and without what newer ones tell.
func TestStreamWithOldLayers(t *testing.T) {
	s := newFakeStore(t)
	for range 2 {
		if _, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(tarOf(inOrder(gzipped, appImage)...)), SpoolDir: t.TempDir()}); err != nil {
			t.Fatal(err)
		}
		checkApp(t, s)
	}
	if len(s.fills) != 2 {
		t.Errorf("unpacked %q", s.fills)
	}
}

// TestStreamDuplicates has a file twice: the last one counts, as in a file.
func TestStreamDuplicates(t *testing.T) {
	files := inOrder(plain, appImage)
	renamed := slices.Clone(files)
	i := slices.IndexFunc(renamed, func(f file) bool { return f.name == "index.json" })
	renamed[i].body = strings.Replace(renamed[i].body, "app:1", "app:2", 1)
	s := newFakeStore(t)
	loaded, err := load(t.Context(), s, "-", LoadOptions{Input: bytes.NewReader(tarOf(append(files, renamed[i])...)), SpoolDir: t.TempDir()})
	if want := []Loaded{{"app:2", appImage.id()}}; err != nil || !slices.Equal(loaded, want) {
		t.Errorf("loaded %v (%v), want %v", loaded, err, want)
	}
	if digest.FromBytes(appImage.config()).String() != appImage.id() || len(s.fills) != 2 {
		t.Errorf("unpacked %q", s.fills)
	}
}
