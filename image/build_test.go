package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// file is an entry of a tar, or of a directory.
type file struct {
	name, body, link string
	kind             byte
	xattrs           map[string]string
	mode             int64
	major, minor     int64
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// tarOf makes a tar of the files, owned by who runs the test.
func tarOf(files ...file) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{
			Name: f.name, Linkname: f.link, Typeflag: f.kind, Size: int64(len(f.body)), Mode: f.mode, Uid: os.Getuid(), Gid: os.Getgid(),
			ModTime: time.Unix(1700000000, 123456789), Devmajor: f.major, Devminor: f.minor, Format: tar.FormatPAX,
		}
		if h.Typeflag == 0 {
			h.Typeflag = tar.TypeReg
		}
		if h.Mode == 0 {
			h.Mode = 0o644
			if h.Typeflag == tar.TypeDir {
				h.Mode = 0o755
			}
		}
		for k, v := range f.xattrs {
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords["SCHILY.xattr."+k] = v
		}
		if err := w.WriteHeader(h); err != nil {
			panic(err)
		}
		must(io.WriteString(w, f.body))
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func pack(kind compression, data []byte) []byte {
	var b bytes.Buffer
	switch kind {
	case gzipped:
		w := gzip.NewWriter(&b)
		must(w.Write(data))
		w.Close()
	case zstded:
		w := must(zstd.NewWriter(&b))
		must(w.Write(data))
		w.Close()
	default:
		return data
	}
	return b.Bytes()
}

// testImage is what the archives of the tests are made of.
type testImage struct {
	layers  [][]byte // plain tars
	refs    []string
	arch    string // "" is amd64
	os      string // "" is linux
	comment string // makes another config of the same layers
}

func (i testImage) config() []byte {
	c := ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, Author: i.comment}
	if i.arch != "" {
		c.Architecture = i.arch
	}
	if i.os != "" {
		c.OS = i.os
	}
	created := time.Unix(1600000000, 0).UTC()
	c.Created = &created
	c.RootFS.Type = "layers"
	for _, l := range i.layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return must(json.MarshalIndent(c, "", "   ")) // indented: its bytes must survive
}

func (i testImage) id() string { return digest.FromBytes(i.config()).String() }

// layerName returns the node's name of the n-th layer.
func (i testImage) layerName(n int) string {
	chain := digest.FromBytes(i.layers[0])
	for _, l := range i.layers[1 : n+1] {
		chain = digest.FromString(chain.String() + " " + digest.FromBytes(l).String())
	}
	return LayerName(chain)
}

// dockerFiles is an archive as docker save wrote it before Docker 25.
func dockerFiles(kind compression, images ...testImage) []file {
	var files []file
	entries := []map[string]any{}
	for _, i := range images {
		config := i.config()
		name := digest.FromBytes(config).Encoded() + ".json"
		var layers []string
		for _, l := range i.layers {
			dir := digest.FromString("v1 id of " + string(l)).Encoded()
			files = append(files, file{name: dir + "/", kind: tar.TypeDir}, file{name: dir + "/VERSION", body: "1.0"},
				file{name: dir + "/layer.tar", body: string(pack(kind, l))})
			layers = append(layers, dir+"/layer.tar")
		}
		files = append(files, file{name: name, body: string(config)})
		entries = append(entries, map[string]any{"Config": name, "RepoTags": i.refs, "Layers": layers})
	}
	return append(files, file{name: "manifest.json", body: string(must(json.Marshal(entries)))}, file{name: "repositories", body: "{}"})
}

// layout collects the blobs of an OCI layout.
type layout struct{ files map[string]string }

func newLayout() *layout {
	return &layout{map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`}}
}

func (l *layout) blob(mediaType string, data []byte) ocispec.Descriptor {
	d := digest.FromBytes(data)
	l.files["blobs/sha256/"+d.Encoded()] = string(data)
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
}

func (l *layout) image(kind compression, i testImage) ocispec.Descriptor {
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	m.Config = l.blob(ocispec.MediaTypeImageConfig, i.config())
	mediaType := ocispec.MediaTypeImageLayer
	if kind != plain {
		mediaType += "+" + string(kind)
	}
	for _, t := range i.layers {
		m.Layers = append(m.Layers, l.blob(mediaType, pack(kind, t)))
	}
	return l.blob(m.MediaType, must(json.Marshal(m)))
}

func (l *layout) index(ds ...ocispec.Descriptor) ocispec.Descriptor {
	i := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: ds}
	return l.blob(i.MediaType, must(json.Marshal(i)))
}

// done returns the files, with the descriptors in index.json.
func (l *layout) done(ds ...ocispec.Descriptor) []file {
	i := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: ds}
	l.files["index.json"] = string(must(json.Marshal(i)))
	var files []file
	for name, body := range l.files {
		files = append(files, file{name: name, body: body})
	}
	return files
}

func named(d ocispec.Descriptor, ref string) ocispec.Descriptor {
	d.Annotations = map[string]string{ocispec.AnnotationRefName: ref}
	return d
}

func platformed(d ocispec.Descriptor, arch string) ocispec.Descriptor {
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: arch}
	return d
}

func ociFiles(kind compression, images ...testImage) []file {
	l := newLayout()
	var ds []ocispec.Descriptor
	for _, i := range images {
		d := l.image(kind, i)
		for _, ref := range i.refs {
			ds = append(ds, named(d, ref))
		}
		if len(i.refs) == 0 {
			ds = append(ds, d)
		}
	}
	return l.done(ds...)
}

// write puts data into a file of the test.
func write(t testing.TB, data []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "archive")
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// writeDir puts files into a directory of the test.
func writeDir(t testing.TB, files []file) string {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		path := filepath.Join(dir, f.name)
		if f.kind == tar.TypeDir {
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if f.kind == tar.TypeSymlink {
			err = os.Symlink(f.link, path)
		} else {
			err = os.WriteFile(path, []byte(f.body), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// The images that most tests use: two that share their lowest layer.
var (
	baseTar = tarOf(
		file{name: "etc/", kind: tar.TypeDir},
		file{name: "etc/passwd", body: "root:x:0:0::/:/bin/sh\n"},
		file{name: "etc/old", body: "old"},
		file{name: "opaque/", kind: tar.TypeDir},
		file{name: "opaque/lower", body: "lower"},
		file{name: "bin", kind: tar.TypeSymlink, link: "usr/bin"},
	)
	appTar = tarOf(
		file{name: "etc/.wh.old"},
		file{name: "opaque/", kind: tar.TypeDir},
		file{name: "opaque/.wh..wh..opq"},
		file{name: "opaque/upper", body: "upper"},
		file{name: "app", body: "one", mode: 0o755},
		file{name: "app-link", kind: tar.TypeLink, link: "app"},
	)
	otherTar = tarOf(file{name: "other", body: "two"})

	appImage   = testImage{layers: [][]byte{baseTar, appTar}, refs: []string{"app:1"}}
	otherImage = testImage{layers: [][]byte{baseTar, otherTar}, refs: []string{"example.com:5000/team/other:v2", "other"}}
)
