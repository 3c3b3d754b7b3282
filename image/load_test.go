package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/internal/errs"
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
		{"wrong media types", func(t *testing.T) (string, LoadOptions) {
			l := newLayout()
			m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
			m.Config = l.blob(ocispec.MediaTypeImageConfig, appImage.config())
			m.Layers = append(m.Layers, l.blob(ocispec.MediaTypeImageLayer, pack(zstded, baseTar)), l.blob(ocispec.MediaTypeImageLayerZstd, pack(gzipped, appTar)))
			return write(t, tarOf(l.done(named(l.blob(m.MediaType, must(json.Marshal(m))), "app:1"))...)), LoadOptions{}
		}},
		{"digests by sha512", func(t *testing.T) (string, LoadOptions) {
			return writeDir(t, sha512Files(appImage)), LoadOptions{}
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

// sha512Files is a layout whose layers, one of them plain, have digests by sha512.
func sha512Files(i testImage) []file {
	l := newLayout()
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = l.blob(ocispec.MediaTypeImageConfig, i.config())
	for n, tar := range i.layers {
		packed := pack([]compression{plain, gzipped}[n%2], tar)
		d := digest.SHA512.FromBytes(packed)
		l.files["blobs/sha512/"+d.Encoded()] = string(packed)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: d, Size: int64(len(packed))})
	}
	return l.done(named(l.blob(m.MediaType, must(json.Marshal(m))), i.refs[0]))
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

// A layer of which a repair of the pool lost a part is not taken for what it was.
func TestLoadOnLostLayer(t *testing.T) {
	s := newFakeStore(t)
	source := write(t, tarOf(dockerFiles(plain, appImage)...))
	if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	s.layers[s.fills[0]].node.Lost = &layer.Loss{Blocks: 3, Of: 17}
	_, err := load(t.Context(), s, source, LoadOptions{})
	if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), "lost 3 of 17 blocks") || !strings.Contains(errs.Hint(err), "dmlayer image rm") {
		t.Errorf("%v (%s)", err, errs.Hint(err))
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
		sources := []string{write(t, tarOf(files...)), write(t, pack(gzipped, tarOf(files...)))}
		if kind == tar.TypeSymlink {
			sources = append(sources, writeDir(t, files))
		}
		for _, source := range sources {
			s := newFakeStore(t)
			if _, err := load(t.Context(), s, source, LoadOptions{}); err != nil {
				t.Errorf("%c: %v", kind, err)
			}
			if len(s.fills) != 3 {
				t.Errorf("%c: layers %q", kind, s.fills)
			}
		}
	}
}
