package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// memTree is an archive in memory.
type memTree map[string]string

func (m memTree) open(_ context.Context, name string) (*blob, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, err
	}
	body, ok := m[clean]
	if !ok {
		return nil, errors.Join(errMissing, ErrDamaged)
	}
	return &blob{ReaderAt: strings.NewReader(body), size: int64(len(body))}, nil
}

func (m memTree) Close() error { return nil }

func treeOf(files []file) memTree {
	m := memTree{}
	for _, f := range files {
		m[f.name] = f.body
	}
	return m
}

// checkArchived fails where an image came out that readArchive must not let through.
func checkArchived(t *testing.T, images []*archived, err error) {
	if err != nil {
		if errs.Class(err) != ErrDamaged && errs.Class(err) != ErrUnsupported {
			t.Fatalf("class of %v", err)
		}
		return
	}
	if len(images) == 0 {
		t.Fatal("neither an image nor an error")
	}
	for _, a := range images {
		if digest.FromBytes(a.config) != a.id || len(a.manifest) == 0 || len(a.layers) > maxLayers {
			t.Fatalf("image %s", a.id)
		}
		for _, ref := range a.refs {
			if _, err := normalize(ref); err != nil {
				t.Fatalf("reference %q: %v", ref, err)
			}
		}
		for _, l := range a.layers {
			if l.diffID.Validate() != nil || !strings.HasPrefix(l.name, "sha256-") || len(l.name) != 71 || strings.Contains(l.name, "/") {
				t.Fatalf("layer %+v", l)
			}
		}
	}
}

// FuzzDockerManifest reads any manifest.json and config beside good layers.
func FuzzDockerManifest(f *testing.F) {
	files := dockerFiles(plain, appImage, otherImage)
	good := treeOf(files)
	f.Add(good["manifest.json"], string(appImage.config()))
	f.Add(`[]`, `{}`)
	f.Add(`[{"Config":"config.json","RepoTags":["a:b"],"Layers":["x"]}]`, `{"rootfs":{"type":"layers","diff_ids":["sha256:`+strings.Repeat("0", 64)+`"]}}`)
	f.Add(`[{"Config":"config.json"}]`, `{"created":"2020-01-01T00:00:00Z","rootfs":{"type":"layers"}}`)
	f.Add(treeOf(docker25Files(appImage))["manifest.json"], string(appImage.config()))
	layout := treeOf(docker25Files(appImage))
	f.Fuzz(func(t *testing.T, manifest, config string) {
		m := memTree{"manifest.json": manifest, "config.json": config}
		for _, from := range []memTree{good, layout} {
			for name, body := range from {
				if m[name] == "" {
					m[name] = body
				}
			}
		}
		images, err := readArchive(t.Context(), m, "linux/amd64")
		checkArchived(t, images, err)
	})
}

// FuzzIndex reads any index.json, with a manifest and a config that fit the digests in it.
func FuzzIndex(f *testing.F) {
	l := newLayout()
	d := l.image(gzipped, appImage)
	index := l.index(platformed(d, "amd64"))
	files := treeOf(l.done(named(index, "app:1")))
	f.Add(files["index.json"], files[blobName(nil)[:13]+d.Digest.Encoded()], string(appImage.config()))
	f.Add(`{"schemaVersion":2,"manifests":[{"mediaType":"","digest":"DIGEST","size":2}]}`, `{}`, `{}`)
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"DIGEST","size":2,"platform":{"os":"linux","architecture":"arm"}},{"digest":"DIGEST"}]}`,
		`{"schemaVersion":2,"config":{"mediaType":"`+ocispec.MediaTypeImageConfig+`","digest":"CONFIG","size":2},"layers":[{"digest":"CONFIG","mediaType":"`+ocispec.MediaTypeImageLayer+`"}]}`, `{}`)
	f.Fuzz(func(t *testing.T, index, manifest, config string) {
		// Words stand for digests, which a fuzzer does not find.
		m := memTree{"oci-layout": files["oci-layout"]}
		for name, body := range files {
			m[name] = body
		}
		put := func(body string) string {
			d := digest.FromString(body)
			m["blobs/sha256/"+d.Encoded()] = body
			return d.String()
		}
		manifest = strings.ReplaceAll(manifest, "CONFIG", put(config))
		m["index.json"] = strings.ReplaceAll(index, "DIGEST", put(manifest))
		for _, platform := range []string{"", "linux/arm64"} {
			images, err := readArchive(t.Context(), m, platform)
			checkArchived(t, images, err)
		}
	})
}

// FuzzTarIndex indexes any archive, and reads what it found there to its end.
func FuzzTarIndex(f *testing.F) {
	f.Add(tarOf(file{name: "a", body: "some bytes"}, file{name: "./a", body: "more"}, file{name: "d/", kind: '5'})) // small: the fuzzer minimises
	f.Add(tarOf(file{name: "manifest.json", kind: '2', link: "manifest.json"}))
	f.Add(tarOf(file{name: "manifest.json", kind: '1', link: "../x"}))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := indexTar(t.Context(), bytes.NewReader(data), int64(len(data)), nil)
		if err != nil {
			if errs.Class(err) != ErrDamaged {
				t.Fatalf("class of %v", err)
			}
			return
		}
		for name := range tree.entries {
			b, err := tree.open(t.Context(), name)
			if err != nil {
				continue
			}
			if n, err := io.Copy(io.Discard, b.reader(t.Context())); err != nil || n != b.size {
				t.Fatalf("%s: %d bytes of %d (%v)", name, n, b.size, err)
			}
		}
	})
}

// FuzzUnpacked decompresses anything.
func FuzzUnpacked(f *testing.F) {
	for _, kind := range []compression{plain, gzipped, zstded} {
		f.Add(pack(kind, []byte("some bytes")))
		f.Add(pack(kind, bytes.Repeat([]byte("some bytes"), 1000)))
	}
	f.Add([]byte("BZh"))
	f.Add([]byte{0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		z, _, err := unpacked(bytes.NewReader(data))
		if err == nil {
			_, err = io.Copy(io.Discard, io.LimitReader(z, 1<<24))
			z.Close()
		}
		if class := errs.Class(err); err != nil && class != ErrDamaged && class != ErrUnsupported {
			t.Fatalf("class of %v", err)
		}
	})
}

// FuzzReference normalises anything: what comes out is its own normal form.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"a", "a:b", "docker.io/library/a", "localhost:5000/a/b:c", "a@" + digest.FromString("").String(), digest.FromString("").String(), "A", "", "a:b@c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		key, err := normalize(s)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatalf("class of %v", err)
			}
			return
		}
		if again, err := normalize(key); err != nil || again != key {
			t.Fatalf("%q: %q, then %q (%v)", s, key, again, err)
		}
		if strings.Contains(key, "\x00") {
			t.Fatalf("%q: NUL in %q", s, key)
		}
	})
}

type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// TestUnpackedKeepsErrors tells a failing disk from damaged data.
func TestUnpackedKeepsErrors(t *testing.T) {
	for _, kind := range []compression{gzipped, zstded} {
		data := pack(kind, bytes.Repeat([]byte("some bytes"), 1000))
		z, _, err := unpacked(io.MultiReader(bytes.NewReader(data[:20]), failingReader{}))
		if err == nil {
			_, err = io.Copy(io.Discard, z)
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", kind, err)
		}
	}
}
