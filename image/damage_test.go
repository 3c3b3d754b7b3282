package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// changed returns files with another body for one of them; "-" takes it away.
func changed(files []file, name, body string) []file {
	files = slices.Clone(files)
	i := slices.IndexFunc(files, func(f file) bool { return f.name == name })
	if i < 0 {
		panic("no file " + name)
	}
	if body == "-" {
		return slices.Delete(files, i, i+1)
	}
	files[i].body = body
	return files
}

func blobName(data []byte) string { return "blobs/sha256/" + digest.FromBytes(data).Encoded() }

// withManifest is an OCI layout whose manifest was edited as JSON.
func withManifest(edit func(m map[string]any)) []file {
	l := newLayout()
	d := l.image(gzipped, appImage)
	var m map[string]any
	if err := json.Unmarshal([]byte(l.files["blobs/sha256/"+d.Digest.Encoded()]), &m); err != nil {
		panic(err)
	}
	edit(m)
	return l.done(l.blob(ocispec.MediaTypeImageManifest, must(json.Marshal(m))))
}

// withConfig is a docker save archive whose config was edited as JSON.
func withConfig(edit func(c map[string]any)) []file {
	files := dockerFiles(plain, appImage)
	old := digest.FromBytes(appImage.config()).Encoded()
	var c map[string]any
	if err := json.Unmarshal(appImage.config(), &c); err != nil {
		panic(err)
	}
	edit(c)
	data := must(json.Marshal(c))
	name := digest.FromBytes(data).Encoded()
	for i := range files {
		files[i].name = strings.ReplaceAll(files[i].name, old, name)
		files[i].body = strings.ReplaceAll(files[i].body, old, name)
		if files[i].name == name+".json" {
			files[i].body = string(data)
		}
	}
	return files
}

// TestLoadDamaged loads what must not load: the class tells why, and nothing is left.
func TestLoadDamaged(t *testing.T) {
	docker := dockerFiles(plain, appImage, otherImage)
	oci := ociFiles(gzipped, appImage)
	packed := pack(gzipped, appTar)
	longTar := tarOf(docker...)
	configName := digest.FromBytes(appImage.config()).Encoded() + ".json"
	otherDir := digest.FromString("v1 id of " + string(otherTar)).Encoded()

	for _, c := range []struct {
		name string
		data any // []byte or []file
		want error
	}{
		{"empty file", []byte{}, ErrDamaged},
		{"text", []byte("this is no archive\n"), ErrDamaged},
		{"long text", bytes.Repeat([]byte("this is no archive\n"), 1000), ErrDamaged},
		{"zeros", make([]byte, 4096), ErrDamaged},
		{"gzip of text", pack(gzipped, []byte("text")), ErrDamaged},
		{"half a gzip", pack(gzipped, longTar)[:500], ErrDamaged},
		{"gzip with a wrong checksum", append(pack(gzipped, longTar)[:len(pack(gzipped, longTar))-8], 1, 2, 3, 4, 5, 6, 7, 8), ErrDamaged},
		{"half a zstd", pack(zstded, longTar)[:500], ErrDamaged},
		{"bzip2", []byte("BZh91AY&SY"), ErrUnsupported},
		{"xz", []byte{0xfd, '7', 'z', 'X', 'Z', 0, 0, 0}, ErrUnsupported},
		{"cut off in a layer", longTar[:3000], ErrDamaged},
		{"cut off in a header", longTar[:len(longTar)-1024-700], ErrDamaged},
		{"file system, as docker export writes it", tarOf(file{name: "etc/passwd", body: "root"}), ErrDamaged},
		{"before Docker 1.10", tarOf(file{name: "repositories", body: "{}"}), ErrUnsupported},
		{"empty directory", []file{}, ErrDamaged},
		{"manifest.json is no JSON", changed(docker, "manifest.json", "{"), ErrDamaged},
		{"manifest.json is something else", changed(docker, "manifest.json", `{"a":1}`), ErrDamaged},
		{"manifest.json is empty", changed(docker, "manifest.json", `[]`), ErrDamaged},
		{"manifest.json without a config", changed(docker, "manifest.json", `[{"RepoTags":["a"]}]`), ErrDamaged},
		{"manifest.json leads out", changed(docker, "manifest.json", `[{"Config":"../../etc/passwd","Layers":[]}]`), ErrDamaged},
		{"manifest.json leads to the root", changed(docker, "manifest.json", `[{"Config":"/etc/passwd","Layers":[]}]`), ErrDamaged},
		{"manifest.json of hundreds of MB", []file{{name: "manifest.json", body: strings.Repeat(" ", maxDocument+1)}}, ErrDamaged},
		{"config missing", changed(docker, configName, "-"), ErrDamaged},
		{"config of another digest", changed(docker, configName, string(otherImage.config())), ErrDamaged},
		{"last layer missing", changed(docker, otherDir+"/layer.tar", "-"), ErrDamaged},
		{"last layer of another diff id", changed(docker, otherDir+"/layer.tar", string(appTar)), ErrDamaged},
		{"packed layer of another diff id", changed(docker, otherDir+"/layer.tar", string(packed)), ErrDamaged},
		{"layer in xz", changed(docker, otherDir+"/layer.tar", "\xfd7zXZ\x00"), ErrUnsupported},
		{"layer is a directory", append(changed(docker, otherDir+"/layer.tar", "-"), file{name: otherDir + "/layer.tar/x"}), ErrDamaged},
		{"config without diff ids", withConfig(func(c map[string]any) { delete(c, "rootfs") }), ErrDamaged},
		{"config with a diff id too few", withConfig(func(c map[string]any) {
			r := c["rootfs"].(map[string]any)
			r["diff_ids"] = r["diff_ids"].([]any)[:1]
		}), ErrDamaged},
		{"diff id is none", withConfig(func(c map[string]any) {
			c["rootfs"].(map[string]any)["diff_ids"].([]any)[1] = "sha256:../../x"
		}), ErrDamaged},
		{"diff id by sha512", withConfig(func(c map[string]any) {
			c["rootfs"].(map[string]any)["diff_ids"].([]any)[1] = digest.SHA512.FromString("x").String()
		}), ErrUnsupported},
		{"image for windows", withConfig(func(c map[string]any) { c["os"] = "windows" }), ErrUnsupported},

		{"layout of version 2", changed(oci, "oci-layout", `{"imageLayoutVersion":"2.0.0"}`), ErrUnsupported},
		{"index.json is no JSON", changed(oci, "index.json", `]`), ErrDamaged},
		{"index.json is a manifest", changed(oci, "index.json", `{"schemaVersion":2,"layers":[]}`), ErrDamaged},
		{"index.json is empty", changed(oci, "index.json", `{"schemaVersion":2,"manifests":[]}`), ErrDamaged},
		{"index.json of schema 1", changed(oci, "index.json", `{"schemaVersion":1}`), ErrUnsupported},
		{"index.json with a digest that leads out", changed(oci, "index.json", `{"schemaVersion":2,"manifests":[{"digest":"sha256:../../x","size":1}]}`), ErrDamaged},
		{"index.json with an unknown algorithm", changed(oci, "index.json", `{"schemaVersion":2,"manifests":[{"digest":"md5:0123456789abcdef","size":1}]}`), ErrDamaged},
		{"blob missing", changed(oci, blobName(packed), "-"), ErrDamaged},
		{"blob of another digest", changed(oci, blobName(packed), string(packed[:len(packed)-1])+"x"), ErrDamaged},
		{"blob too short", changed(oci, blobName(packed), string(packed[:20])), ErrDamaged},
		{"blob too long", changed(oci, blobName(packed), string(packed)+"more"), ErrDamaged},
		{"config blob of another digest", changed(oci, blobName(appImage.config()), strings.Replace(string(appImage.config()), "amd64", "amd65", 1)), ErrDamaged},
		{"negative size", withManifest(func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = -1 }), ErrDamaged},
		{"huge size", withManifest(func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["size"] = 1 << 60 }), ErrDamaged},
		{"layer of an unknown type", withManifest(func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["mediaType"] = "x/encrypted" }), ErrUnsupported},
		{"layer too few", withManifest(func(m map[string]any) { m["layers"] = m["layers"].([]any)[:1] }), ErrDamaged},
		{"manifest that is an index too", withManifest(func(m map[string]any) { m["manifests"] = []any{} }), ErrDamaged},
		{"manifest that calls itself an index", withManifest(func(m map[string]any) { m["mediaType"] = ocispec.MediaTypeImageIndex }), ErrDamaged},
		{"no image but an artifact", withManifest(func(m map[string]any) {
			m["config"].(map[string]any)["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
		}), ErrUnsupported},
		{"wrong diff id, right digests", wrongDiffID(), ErrDamaged},
		{"malformed tar, right digests", ociFiles(gzipped, testImage{layers: [][]byte{baseTar, bytes.Repeat([]byte("no tar "), 1000)}}), ErrDamaged},
		{"tar cut off, right digests", ociFiles(gzipped, testImage{layers: [][]byte{baseTar, tarOf(file{name: "a", body: strings.Repeat("a", 10000)})[:5000]}}), ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			forms := map[string]func() string{}
			switch data := c.data.(type) {
			case []byte:
				forms["file"] = func() string { return write(t, data) }
			case []file:
				forms["file"] = func() string { return write(t, tarOf(data...)) }
				forms["directory"] = func() string { return writeDir(t, data) }
				forms["gzip"] = func() string { return write(t, pack(gzipped, tarOf(data...))) }
			}
			for form, source := range forms {
				s := newFakeStore(t)
				loaded, err := load(t.Context(), s, source(), LoadOptions{})
				if errs.Class(err) != c.want || len(loaded) > 0 {
					t.Errorf("%s: loaded %v, error %v, want class %v", form, loaded, err, c.want)
				}
				s.checkEmpty(t)
			}
		})
	}
}

// TestErrorsTellWhere wants the layer's file and the entry in what is said of a layer.
func TestErrorsTellWhere(t *testing.T) {
	for _, c := range []struct {
		name  string
		entry file
		want  error
	}{
		{"device", file{name: "dev/disk", kind: tar.TypeBlock, major: 8}, ErrUnsupported},
		{"hard link to nothing", file{name: "d/link", kind: tar.TypeLink, link: "../../../etc/shadow"}, ErrDamaged},
		{"whiteout of ..", file{name: "d/.wh..."}, ErrDamaged},
	} {
		s := newFakeStore(t)
		s.forbidDevices = true
		top := tarOf(file{name: "before", body: "x"}, c.entry)
		_, err := load(t.Context(), s, write(t, tarOf(ociFiles(gzipped, testImage{layers: [][]byte{baseTar, top}})...)), LoadOptions{})
		if errs.Class(err) != c.want || !strings.Contains(err.Error(), blobName(pack(gzipped, top))) || !strings.Contains(err.Error(), c.entry.name) {
			t.Errorf("%s: %v", c.name, err)
		}
		s.checkEmpty(t)
	}
}

// wrongDiffID is a layout in which every digest of a blob is right, and the config tells another diff id.
func wrongDiffID() []file {
	l := newLayout()
	liar := testImage{layers: [][]byte{baseTar, otherTar}}
	right := l.image(gzipped, appImage)
	var m ocispec.Manifest
	if err := json.Unmarshal([]byte(l.files["blobs/sha256/"+right.Digest.Encoded()]), &m); err != nil {
		panic(err)
	}
	m.Config = l.blob(ocispec.MediaTypeImageConfig, liar.config())
	return l.done(l.blob(m.MediaType, must(json.Marshal(m))))
}

// TestLoadDamagedMidway damages an archive whose images share layers with what is there: that stays.
func TestLoadDamagedMidway(t *testing.T) {
	s := newFakeStore(t)
	if _, err := load(t.Context(), s, write(t, tarOf(dockerFiles(plain, otherImage)...)), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	before, docs := s.names(), maps.Clone(s.docs)
	if _, err := load(t.Context(), s, write(t, tarOf(wrongDiffIDAbove()...)), LoadOptions{}); !errors.Is(err, ErrDamaged) {
		t.Fatal(err)
	}
	if got := s.names(); !slices.Equal(got, before) || len(s.docs) != len(docs) {
		t.Errorf("layers %q, were %q; %d documents, were %d", got, before, len(s.docs), len(docs))
	}
}

func wrongDiffIDAbove() []file {
	l := newLayout()
	liar := testImage{layers: [][]byte{baseTar, appTar, baseTar}}
	right := l.image(gzipped, testImage{layers: [][]byte{baseTar, appTar, otherTar}})
	var m ocispec.Manifest
	if err := json.Unmarshal([]byte(l.files["blobs/sha256/"+right.Digest.Encoded()]), &m); err != nil {
		panic(err)
	}
	m.Config = l.blob(ocispec.MediaTypeImageConfig, liar.config())
	return l.done(l.blob(m.MediaType, must(json.Marshal(m))))
}

func TestLoadSources(t *testing.T) {
	dir := t.TempDir()
	if _, err := load(t.Context(), newFakeStore(t), dir+"/nothing", LoadOptions{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("no file: %v", err)
	}
	if _, err := load(t.Context(), newFakeStore(t), "/dev/null", LoadOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("device: %v", err)
	}
	if _, err := load(t.Context(), newFakeStore(t), "-", LoadOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("no input: %v", err)
	}
	opened := must(os.Open(dir))
	defer opened.Close()
	if _, err := load(t.Context(), newFakeStore(t), "-", LoadOptions{Input: opened}); !errors.Is(err, ErrInvalid) || errs.Hint(err) == "" {
		t.Errorf("a directory as input: %v", err)
	}
	broken := io.MultiReader(bytes.NewReader(tarOf(ociFiles(plain, appImage)...)[:1024]), iotest.ErrReader(errors.New("the cable")))
	if _, err := load(t.Context(), newFakeStore(t), "-", LoadOptions{Input: broken}); err == nil || strings.Count(err.Error(), "read image archive") != 1 || !strings.Contains(err.Error(), "the cable") {
		t.Errorf("input that cannot be read: %v", err)
	}
	if _, err := load(t.Context(), newFakeStore(t), "-", LoadOptions{Input: strings.NewReader("")}); !errors.Is(err, ErrDamaged) {
		t.Errorf("empty input: %v", err)
	}
	if _, err := load(t.Context(), newFakeStore(t), writeDir(t, ociFiles(plain, appImage)), LoadOptions{Platform: "a/b/c/d/e"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("platform: %v", err)
	}
	fifo := dir + "/fifo"
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() { _ = os.WriteFile(fifo, tarOf(ociFiles(plain, appImage)...), 0) }()
	s := newFakeStore(t)
	if _, err := load(t.Context(), s, fifo, LoadOptions{}); err != nil {
		t.Fatalf("fifo: %v", err)
	}
	checkApp(t, s)
}

// TestDirectoryLinks has links that lead out of a layout, and a FIFO in the place of a layer.
func TestDirectoryLinks(t *testing.T) {
	secret := write(t, []byte("secret"))
	dir := writeDir(t, changed(ociFiles(plain, appImage), "index.json", "-"))
	if err := os.Symlink(secret, dir+"/index.json"); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t.Context(), newFakeStore(t), dir, LoadOptions{}); !errors.Is(err, ErrUnsupported) || strings.Contains(err.Error(), "secret") {
		t.Errorf("link out of the layout: %v", err)
	}
	for target, want := range map[string]error{"../../../" + blobName(appTar): ErrUnsupported, secret: ErrUnsupported, "../../index.json": ErrDamaged, digest.FromBytes(appTar).Encoded(): ErrDamaged} {
		dir := writeDir(t, changed(ociFiles(plain, appImage), blobName(appTar), "-"))
		if err := os.Symlink(target, dir+"/"+blobName(appTar)); err != nil {
			t.Fatal(err)
		}
		s := newFakeStore(t)
		if _, err := load(t.Context(), s, dir, LoadOptions{}); errs.Class(err) != want {
			t.Errorf("layer that is a link to %s: %v, want %v", target, err, want)
		}
		s.checkEmpty(t)
	}
	dir = writeDir(t, changed(ociFiles(plain, appImage), blobName(appTar), "-"))
	if err := syscall.Mkfifo(dir+"/"+blobName(appTar), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := load(t.Context(), newFakeStore(t), dir, LoadOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("FIFO: %v", err)
	}
}

// TestTarIndex has archives that are odd in how they are put together.
func TestTarIndex(t *testing.T) {
	for _, c := range []struct {
		name  string
		files []file
		want  error
	}{
		{"the last entry of a name counts", append([]file{{name: "index.json", body: "]"}}, ociFiles(plain, appImage)...), nil},
		{"links in a circle", []file{{name: "manifest.json", kind: tar.TypeSymlink, link: "b"}, {name: "b", kind: tar.TypeSymlink, link: "manifest.json"}}, ErrDamaged},
		{"link to itself", []file{{name: "manifest.json", kind: tar.TypeLink, link: "manifest.json"}}, ErrDamaged},
		{"link that leads out", []file{{name: "manifest.json", kind: tar.TypeSymlink, link: "../../../etc/passwd"}}, ErrDamaged},
		{"names that lead out", append([]file{{name: "../evil", body: "x"}, {name: "/abs", body: "x"}}, ociFiles(plain, appImage)...), nil},
		{"device in the place of a file", []file{{name: "manifest.json", kind: tar.TypeChar}}, ErrDamaged},
	} {
		s := newFakeStore(t)
		_, err := load(t.Context(), s, write(t, tarOf(c.files...)), LoadOptions{})
		if errs.Class(err) != c.want || c.want == nil && err != nil {
			t.Errorf("%s: %v, want class %v", c.name, err, c.want)
		}
	}
}

func TestIndexesWithinIndexes(t *testing.T) {
	nest := func(depth int) []file {
		l := newLayout()
		d := l.image(plain, appImage)
		for range depth {
			d = l.index(d)
		}
		return l.done(named(d, "app:1"))
	}
	s := newFakeStore(t)
	if _, err := load(t.Context(), s, write(t, tarOf(nest(3)...)), LoadOptions{}); err != nil {
		t.Errorf("three deep: %v", err)
	}
	if _, err := load(t.Context(), newFakeStore(t), write(t, tarOf(nest(maxIndexDepth+2)...)), LoadOptions{}); !errors.Is(err, ErrDamaged) {
		t.Errorf("too deep: %v", err)
	}
}

// TestDiamondIndexes has indexes that all lead to two of the next level: the ways are many, the documents
// few. And the same manifest under several names.
func TestDiamondIndexes(t *testing.T) {
	l := newLayout()
	d := l.image(plain, appImage)
	for range maxIndexDepth - 1 {
		other := d
		other.Annotations = map[string]string{"other": "way"}
		d = l.index(d, other, d, other, d, other, d, other)
	}
	s := newFakeStore(t)
	loaded, err := load(t.Context(), s, writeDir(t, l.done(named(d, "app:1"), named(d, "app:1"), named(d, "app:2"), d)), LoadOptions{})
	if want := []Loaded{{"app:1", appImage.id()}, {"app:2", appImage.id()}, {"", appImage.id()}}; err != nil || !slices.Equal(loaded, want) {
		t.Errorf("loaded %v (%v), want %v", loaded, err, want)
	}
	if len(s.fills) != 2 {
		t.Errorf("unpacked %q", s.fills)
	}
}

// TestPlatforms chooses among the images of an index.
func TestPlatforms(t *testing.T) {
	arm := testImage{layers: [][]byte{otherTar}, arch: "arm64"}
	l := newLayout()
	amdDesc, armDesc := platformed(l.image(plain, appImage), "amd64"), platformed(l.image(plain, arm), "arm64")
	gone := platformed(l.blob(ocispec.MediaTypeImageManifest, []byte("{}")), "s390x")
	delete(l.files, "blobs/sha256/"+gone.Digest.Encoded())

	for _, c := range []struct {
		name     string
		top      []ocispec.Descriptor
		platform string
		want     []string
		err      error
	}{
		{"nested", []ocispec.Descriptor{l.index(armDesc, amdDesc, gone)}, "linux/arm64", []string{arm.id()}, nil},
		{"nested, not in the archive", []ocispec.Descriptor{l.index(armDesc, amdDesc, gone)}, "linux/s390x", nil, ErrDamaged},
		{"nested, nowhere", []ocispec.Descriptor{l.index(armDesc, amdDesc, gone)}, "linux/riscv64", nil, ErrUnsupported},
		{"flat", []ocispec.Descriptor{armDesc, amdDesc}, "linux/amd64", []string{appImage.id()}, nil},
		{"flat, nowhere", []ocispec.Descriptor{armDesc, amdDesc}, "linux/riscv64", nil, ErrUnsupported},
		{"a lone one", []ocispec.Descriptor{l.index(armDesc)}, "", []string{arm.id()}, nil},
		{"a lone one, another asked for", []ocispec.Descriptor{l.index(armDesc)}, "linux/amd64", nil, ErrUnsupported},
		{"several names", []ocispec.Descriptor{named(armDesc, "a"), named(amdDesc, "b")}, "", []string{arm.id(), appImage.id()}, nil},
	} {
		s := newFakeStore(t)
		loaded, err := load(t.Context(), s, writeDir(t, l.done(c.top...)), LoadOptions{Platform: c.platform})
		var ids []string
		for _, i := range loaded {
			ids = append(ids, i.ID)
		}
		if errs.Class(err) != c.err || !slices.Equal(ids, c.want) {
			t.Errorf("%s: %q (%v), want %q", c.name, ids, err, c.want)
		}
	}
}

// TestReferences spells names in the ways that writers of layouts have.
func TestReferences(t *testing.T) {
	for _, c := range []struct {
		annotations map[string]string
		want        string
		odd         []string
	}{
		{map[string]string{ocispec.AnnotationRefName: "latest"}, "latest", nil},
		{map[string]string{ocispec.AnnotationRefName: "1", annotationImageName: "docker.io/library/app:1"}, "docker.io/library/app:1", nil},
		{map[string]string{annotationImageName: appImage.id(), ocispec.AnnotationRefName: "ghcr.io/a/b:c"}, "ghcr.io/a/b:c", nil},
		{map[string]string{annotationImageName: "App:1", ocispec.AnnotationRefName: "1"}, "1", []string{"App:1"}},
		{map[string]string{ocispec.AnnotationRefName: "Not A Name"}, "", []string{"Not A Name"}},
		{map[string]string{ocispec.AnnotationRefName: appImage.id()}, "", nil},
		{nil, "", nil},
	} {
		l := newLayout()
		d := l.image(plain, appImage)
		d.Annotations = c.annotations
		var odd []string
		loaded, err := load(t.Context(), newFakeStore(t), writeDir(t, l.done(d)), LoadOptions{Odd: func(name string) { odd = append(odd, name) }})
		if err != nil || len(loaded) != 1 || loaded[0].Ref != c.want || !slices.Equal(odd, c.odd) {
			t.Errorf("%v: %v (%v), odd %q, want %q, odd %q", c.annotations, loaded, err, odd, c.want, c.odd)
		}
	}
}

// TestDockerReferences has names in manifest.json that are none, alone and beside one that is: the image is
// loaded, under what is a name.
func TestDockerReferences(t *testing.T) {
	files := dockerFiles(plain, appImage)
	manifest := files[slices.IndexFunc(files, func(f file) bool { return f.name == "manifest.json" })].body
	for _, odd := range []string{"App One", "app\x1b[2J:1", "app\x00:1", strings.Repeat("long/", 1<<20), appImage.id()} {
		for _, good := range []string{"", "app:1"} {
			tags, want := []string{odd}, []Loaded{{"", appImage.id()}}
			if good != "" {
				tags, want = append(tags, good), []Loaded{{good, appImage.id()}}
			}
			spelled := must(json.Marshal(tags))
			archive := tarOf(changed(files, "manifest.json", strings.Replace(manifest, `["app:1"]`, string(spelled), 1))...)
			for form, o := range map[string]LoadOptions{"file": {}, "stream": {Input: bytes.NewReader(archive), SpoolDir: t.TempDir()}} {
				source := "-"
				if form == "file" {
					source = write(t, archive)
				}
				var got []string
				o.Odd = func(name string) { got = append(got, name) }
				s := newFakeStore(t)
				loaded, err := load(t.Context(), s, source, o)
				if err != nil || !slices.Equal(loaded, want) || !slices.Equal(got, []string{odd}) {
					t.Errorf("%s, %.40q and %q: %v, odd %.40q, %v", form, odd, good, loaded, got, err)
				}
			}
		}
	}
}
