package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/layer"
)

// checkApp fails unless the store holds appImage with the content it should have, and its layers can be
// rebuilt.
func checkApp(t *testing.T, s *fakeStore) {
	t.Helper()
	top := appImage.layerName(1)
	for name, want := range map[string]string{
		"etc/passwd": "root:x:0:0::/:/bin/sh\n", "etc/old": "", "opaque/lower": "", "opaque/upper": "upper", "app": "one", "app-link": "one",
	} {
		if got := s.content(t, top, name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if got := s.content(t, appImage.layerName(0), "etc/old"); got != "old" {
		t.Errorf("lower layer: etc/old: %q", got)
	}
	i, err := get(t.Context(), s, "app:1")
	if err != nil {
		t.Fatal(err)
	}
	if i.ID != appImage.id() || digest.FromBytes(i.Config).String() != i.ID || i.TopLayer() != top || i.Platform != "linux/amd64" {
		t.Errorf("image: %+v", i)
	}
	if want := int64(len(baseTar) + len(appTar)); i.Size != want || len(i.Layers) != 2 {
		t.Errorf("%d layers of %d bytes, want 2 of %d", len(i.Layers), i.Size, want)
	}
	for n, l := range i.Layers {
		var b bytes.Buffer
		if err := rebuild(t.Context(), s, l.Name, &b); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(b.Bytes(), appImage.layers[n]) {
			t.Errorf("layer %d was rebuilt differently", n)
		}
		node, err := s.Get(t.Context(), l.Name)
		if err != nil || node.Attrs[attrDigest] != l.Digest || l.Digest == "" || node.Attrs[attrDiffID] != l.DiffID {
			t.Errorf("layer %d: attributes %v, image says %+v (%v)", n, node.Attrs, l, err)
		}
	}
}

// TestLoadForms loads one image in all forms in which it may come.
func TestLoadForms(t *testing.T) {
	for _, form := range []struct {
		name   string
		source func(t *testing.T) (string, LoadOptions)
	}{
		{"docker archive", func(t *testing.T) (string, LoadOptions) {
			return write(t, tarOf(dockerFiles(plain, appImage)...)), LoadOptions{}
		}},
		{"docker archive, gzip layers", func(t *testing.T) (string, LoadOptions) {
			return write(t, tarOf(dockerFiles(gzipped, appImage)...)), LoadOptions{}
		}},
		{"docker archive, gzip", func(t *testing.T) (string, LoadOptions) {
			return write(t, pack(gzipped, tarOf(dockerFiles(plain, appImage)...))), LoadOptions{}
		}},
		{"docker archive, zstd", func(t *testing.T) (string, LoadOptions) {
			return write(t, pack(zstded, tarOf(dockerFiles(plain, appImage)...))), LoadOptions{}
		}},
		{"docker directory", func(t *testing.T) (string, LoadOptions) {
			return writeDir(t, dockerFiles(plain, appImage)), LoadOptions{}
		}},
		{"oci directory", func(t *testing.T) (string, LoadOptions) {
			return writeDir(t, ociFiles(gzipped, appImage)), LoadOptions{}
		}},
		{"oci archive, plain layers", func(t *testing.T) (string, LoadOptions) {
			return write(t, tarOf(ociFiles(plain, appImage)...)), LoadOptions{}
		}},
		{"oci archive, zstd layers", func(t *testing.T) (string, LoadOptions) {
			return write(t, tarOf(ociFiles(zstded, appImage)...)), LoadOptions{}
		}},
		{"stream", func(t *testing.T) (string, LoadOptions) {
			return "-", LoadOptions{Input: bytes.NewReader(tarOf(ociFiles(gzipped, appImage)...)), SpoolDir: t.TempDir()}
		}},
		{"stream, gzip", func(t *testing.T) (string, LoadOptions) {
			return "-", LoadOptions{Input: bytes.NewReader(pack(gzipped, tarOf(ociFiles(gzipped, appImage)...)))}
		}},
		{"dot names", func(t *testing.T) (string, LoadOptions) {
			files := ociFiles(plain, appImage)
			for i := range files {
				files[i].name = "./" + files[i].name
			}
			return write(t, tarOf(files...)), LoadOptions{}
		}},
		{"docker 25: manifest.json over a layout", func(t *testing.T) (string, LoadOptions) {
			return write(t, tarOf(docker25Files(appImage)...)), LoadOptions{}
		}},
		{"nested index", func(t *testing.T) (string, LoadOptions) {
			l := newLayout()
			arm := appImage
			arm.arch = "arm64"
			attestation := l.blob(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2}`))
			attestation.Annotations = map[string]string{annotationDockerRef: "attestation-manifest"}
			index := l.index(platformed(l.image(gzipped, arm), "arm64"), attestation, platformed(l.image(gzipped, appImage), "amd64"))
			return write(t, tarOf(l.done(named(index, "app:1"))...)), LoadOptions{Platform: "linux/amd64"}
		}},
	} {
		t.Run(form.name, func(t *testing.T) {
			s := newFakeStore(t)
			source, o := form.source(t)
			loaded, err := load(t.Context(), s, source, o)
			if err != nil {
				t.Fatal(err)
			}
			if want := []Loaded{{"app:1", appImage.id()}}; !slices.Equal(loaded, want) {
				t.Errorf("loaded %v, want %v", loaded, want)
			}
			checkApp(t, s)
		})
	}
}

// docker25Files is an archive as Docker 25 and containerd write it.
func docker25Files(i testImage) []file {
	l := newLayout()
	d := l.image(plain, i)
	var layers []byte
	for n, t := range i.layers {
		if n > 0 {
			layers = append(layers, ',')
		}
		layers = append(layers, `"blobs/sha256/`+digest.FromBytes(t).Encoded()+`"`...)
	}
	l.files["manifest.json"] = `[{"Config":"blobs/sha256/` + digest.FromBytes(i.config()).Encoded() + `","RepoTags":["` + i.refs[0] + `"],"Layers":[` + string(layers) + `]}]`
	return l.done(named(d, "1"))
}

func TestDocker25KeepsTheManifest(t *testing.T) {
	s := newFakeStore(t)
	if _, err := load(t.Context(), s, write(t, tarOf(docker25Files(appImage)...)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	i, err := get(t.Context(), s, "app:1")
	if err != nil {
		t.Fatal(err)
	}
	l := newLayout()
	if want := l.image(plain, appImage).Digest; i.ManifestType != ocispec.MediaTypeImageManifest || digest.FromBytes(i.Manifest) != want {
		t.Errorf("manifest %s of type %s, want %s", digest.FromBytes(i.Manifest), i.ManifestType, want)
	}
}

func TestLoadTwoImages(t *testing.T) {
	s := newFakeStore(t)
	untagged := testImage{layers: [][]byte{otherTar}}
	loaded, err := load(t.Context(), s, write(t, tarOf(dockerFiles(plain, appImage, otherImage, untagged, appImage)...)), LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	want := []Loaded{
		{"app:1", appImage.id()}, {"example.com:5000/team/other:v2", otherImage.id()}, {"other", otherImage.id()}, {"", untagged.id()},
	}
	if !slices.Equal(loaded, want) {
		t.Errorf("loaded %v, want %v", loaded, want)
	}
	if got := loaded[3].String(); got != untagged.id() {
		t.Errorf("an image without a reference is called %q", got)
	}
	if len(s.fills) != 4 {
		t.Errorf("%d layers were unpacked, want 4: %q", len(s.fills), s.fills)
	}
	images, err := list(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	var refs []string
	for _, i := range images {
		refs = append(refs, i.Ref)
	}
	if want := []string{"", "app:1", "example.com:5000/team/other:v2", "other"}; !slices.Equal(refs, want) {
		t.Errorf("listed %q, want %q", refs, want)
	}
	checkApp(t, s)
}

func TestLoadAgain(t *testing.T) {
	s := newFakeStore(t)
	oci := write(t, tarOf(ociFiles(gzipped, appImage)...))
	for _, source := range []string{oci, oci, write(t, tarOf(dockerFiles(plain, appImage)...))} {
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		checkApp(t, s)
	}
	if len(s.fills) != 2 {
		t.Errorf("%d layers were unpacked, want 2", len(s.fills))
	}
	if i, err := get(t.Context(), s, "app:1"); err != nil || i.ManifestType != ocispec.MediaTypeImageManifest {
		t.Errorf("the manifest of the first load is gone: %s (%v)", i.ManifestType, err)
	}
}

// TestLoadGoesOn loads an image of which a killed load has left a layer without a record.
func TestLoadGoesOn(t *testing.T) {
	s := newFakeStore(t)
	source := write(t, tarOf(ociFiles(gzipped, appImage)...))
	if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	clear(s.docs)
	if err := s.Remove(t.Context(), appImage.layerName(1)); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	checkApp(t, s)
	if len(s.fills) != 3 {
		t.Errorf("%d layers were unpacked, want 3", len(s.fills))
	}
}

func TestLoadMovesReference(t *testing.T) {
	s := newFakeStore(t)
	newer := testImage{layers: otherImage.layers, refs: []string{"docker.io/library/app:1"}}
	for _, i := range []testImage{appImage, newer} {
		if _, err := load(t.Context(), s, write(t, tarOf(dockerFiles(plain, i)...)), LoadOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	i, err := get(t.Context(), s, "app:1")
	if err != nil || i.ID != newer.id() || i.Ref != "docker.io/library/app:1" {
		t.Errorf("app:1 is %s %s (%v)", i.Ref, i.ID, err)
	}
	old, err := get(t.Context(), s, appImage.id()[:20])
	if err != nil || old.ID != appImage.id() || len(old.Refs) != 0 {
		t.Errorf("the older image is %+v (%v)", old, err)
	}
}

func TestLoadInParallel(t *testing.T) {
	s := newFakeStore(t)
	source := write(t, tarOf(dockerFiles(gzipped, appImage, otherImage)...))
	errc := make(chan error)
	for range 4 {
		go func() {
			_, err := load(t.Context(), s, source, LoadOptions{})
			errc <- err
		}()
	}
	for range 4 {
		if err := <-errc; err != nil {
			t.Error(err)
		}
	}
	checkApp(t, s)
	if len(s.fills) != 3 {
		t.Errorf("%d layers were unpacked, want 3", len(s.fills))
	}
}

// TestLoadAgainstRemoval takes layers away between their making and the record, as removing an image
// that shares them does.
func TestLoadAgainstRemoval(t *testing.T) {
	source := write(t, tarOf(dockerFiles(plain, appImage)...))
	t.Run("before the record", func(t *testing.T) {
		s := newFakeStore(t)
		times := 0
		s.beforeUpdate = func() {
			if times++; times <= 2 {
				_ = s.Remove(context.Background(), appImage.layerName(1))
				_ = s.Remove(context.Background(), appImage.layerName(0))
			}
		}
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		s.beforeUpdate = nil
		checkApp(t, s)
	})
	t.Run("before the child", func(t *testing.T) {
		s := newFakeStore(t)
		times := 0
		s.beforeCreate = func() {
			if times++; times == 2 {
				_ = s.Remove(context.Background(), appImage.layerName(0))
			}
		}
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		checkApp(t, s)
	})
	t.Run("for ever", func(t *testing.T) {
		s := newFakeStore(t)
		s.beforeUpdate = func() { _ = s.Remove(context.Background(), appImage.layerName(1)) }
		if _, err := load(t.Context(), s, source, LoadOptions{}); !errors.Is(err, errVanished) {
			t.Errorf("load: %v", err)
		}
		if got := s.names(); !slices.Equal(got, []string{appImage.layerName(0)}) || len(s.docs) > 0 {
			t.Errorf("left: %q, %d documents", got, len(s.docs))
		}
	})
}

// TestLoadCancelled cancels a load in its second layer: the first stays, and the next load goes on from it.
func TestLoadCancelled(t *testing.T) {
	for _, at := range []Stage{StageWaiting, StageUnpack} {
		s := newFakeStore(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		o := LoadOptions{Progress: func(e Event) {
			if e.Stage == at && e.Layer == appImage.layerName(1) {
				cancel()
			}
		}}
		source := write(t, tarOf(dockerFiles(plain, appImage)...))
		if _, err := load(ctx, s, source, o); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", at, err)
		}
		var want []string
		if at == StageUnpack {
			want = append(want, appImage.layerName(0))
		}
		if got := s.names(); !slices.Equal(got, want) || len(s.docs) > 0 {
			t.Errorf("%s: left %q and %d documents, want %q", at, got, len(s.docs), want)
		}
		s.fills = nil
		if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		checkApp(t, s)
		if len(s.fills)+len(want) != 2 {
			t.Errorf("%s: the second load unpacked %q", at, s.fills)
		}
	}
}

// TestLoadTellsOfLayers wants each layer told of when it is there, with the size of its tar, however it was packed.
func TestLoadTellsOfLayers(t *testing.T) {
	s := newFakeStore(t)
	n := 0
	o := LoadOptions{Progress: func(e Event) {
		if e.Stage != StageDone {
			return
		}
		if want := int64(len(appImage.layers[n])); e.Layer != appImage.layerName(n) || e.Done != want || e.Total != want {
			t.Errorf("event %+v, want layer %d of %d bytes", e, n, want)
		}
		if _, err := s.Get(t.Context(), e.Layer); err != nil {
			t.Error(err)
		}
		n++
	}}
	if _, err := load(t.Context(), s, write(t, tarOf(dockerFiles(gzipped, appImage)...)), o); err != nil {
		t.Fatal(err)
	}
	if n != len(appImage.layers) {
		t.Errorf("%d layers were told of, want %d", n, len(appImage.layers))
	}
}

// TestLoadStreamCancelled cancels a load whose input never comes.
func TestLoadStreamCancelled(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := load(ctx, newFakeStore(t), "-", LoadOptions{Input: r}); !errors.Is(err, context.Canceled) {
		t.Errorf("load: %v", err)
	}
}

// TestLoadRefusesStrangers has nodes of the layer's name that are not the layer.
func TestLoadRefusesStrangers(t *testing.T) {
	for _, n := range []layer.Node{
		{Kind: layer.KindSnapshot, Attrs: map[string]string{attrChainID: chainOf(appImage.layerName(0))}},
		{Kind: layer.KindLayer},
	} {
		s := newFakeStore(t)
		n.Name = appImage.layerName(0)
		s.layers[n.Name] = &fakeLayer{node: n, root: t.TempDir()}
		if _, err := load(t.Context(), s, write(t, tarOf(dockerFiles(plain, appImage)...)), LoadOptions{}); !errors.Is(err, ErrExists) {
			t.Errorf("load over a %s: %v", n.Kind, err)
		}
		if len(s.docs) > 0 || len(s.names()) != 1 {
			t.Errorf("left: %q, %d documents", s.names(), len(s.docs))
		}
	}
}

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

// TestLoadWithoutLayers loads an image that is a config only, as "FROM scratch" makes one.
func TestLoadWithoutLayers(t *testing.T) {
	s := newFakeStore(t)
	i := testImage{refs: []string{"empty"}}
	if _, err := load(t.Context(), s, writeDir(t, ociFiles(plain, i)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	got, err := get(t.Context(), s, "empty:latest")
	if err != nil || got.TopLayer() != "" || got.Ref != "empty" {
		t.Errorf("%+v (%v)", got, err)
	}
}

// TestLoadOldLinks has layers that are links to another's layer, as docker save wrote them.
func TestLoadOldLinks(t *testing.T) {
	twice := testImage{layers: [][]byte{baseTar, otherTar, otherTar}, refs: []string{"twice"}}
	for _, kind := range []byte{tar.TypeSymlink, tar.TypeLink} {
		files := dockerFiles(plain, twice)
		v1 := digest.FromString("v1 id of " + string(otherTar)).Encoded()
		link := "../" + v1 + "/real.tar"
		if kind == tar.TypeLink {
			link = v1 + "/real.tar"
		}
		for i, f := range files {
			if f.name == v1+"/layer.tar" && f.kind == 0 {
				files[i].name = v1 + "/real.tar"
			}
		}
		files = append(files, file{name: v1 + "/layer.tar", kind: kind, link: link})
		s := newFakeStore(t)
		if _, err := load(t.Context(), s, write(t, tarOf(files...)), LoadOptions{}); err != nil {
			t.Errorf("%c: %v", kind, err)
		}
		if len(s.fills) != 3 {
			t.Errorf("%c: layers %q", kind, s.fills)
		}
	}
}
