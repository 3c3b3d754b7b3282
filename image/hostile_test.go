package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// longError is more than an error may say, however long the names in an archive are.
const longError = 4000

// refuse loads an archive that must not load, from a file and as a stream, and wants nothing left and an
// error of a class that says something.
func refuse(t *testing.T, s func() *fakeStore, data []byte, want error, says ...string) {
	t.Helper()
	for form, o := range map[string]LoadOptions{"file": {}, "stream": {Input: bytes.NewReader(data), SpoolDir: t.TempDir()}} {
		source := "-"
		if form == "file" {
			source = write(t, data)
		}
		store := s()
		loaded, err := load(t.Context(), store, source, o)
		if errs.Class(err) != want || len(loaded) > 0 {
			t.Errorf("%s: loaded %d, error %.1000v, want class %v", form, len(loaded), err, want)
		}
		for _, text := range says {
			if err != nil && !strings.Contains(err.Error(), text) {
				t.Errorf("%s: error %.1000v, want %q", form, err, text)
			}
		}
		if err != nil && len(err.Error()) > longError {
			t.Errorf("%s: an error of %d bytes", form, len(err.Error()))
		}
		store.checkEmpty(t)
	}
}

// TestHostileLayers has an image whose last layer is not to be unpacked: the error says which layer and
// which entry, and nothing of the image stays.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	canary := outside + "/canary"
	if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
		t.Fatal(err)
	}
	header := func(name, size string) []byte { // of which nothing follows
		b := tarOf(file{name: name})[1024:1536] // behind a PAX header
		copy(b[124:136], size)
		copy(b[148:156], "        ")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:156], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	deep := strings.Repeat("d/", 2100)
	for _, c := range []struct {
		name, entry string
		layer       []byte
		want        error
	}{
		{"hard link out", "evil", tarOf(file{name: "evil", kind: tar.TypeLink, link: canary}), ErrDamaged},
		{"hard link out by dots", "evil", tarOf(file{name: "evil", kind: tar.TypeLink, link: strings.Repeat("../", 50) + canary}), ErrDamaged},
		{"hard link out by a symlink", "evil", tarOf(file{name: "s", kind: tar.TypeSymlink, link: outside}, file{name: "evil", kind: tar.TypeLink, link: "s/canary"}), ErrDamaged},
		{"whiteout of dots", "d/.wh...", tarOf(file{name: "d/", kind: tar.TypeDir}, file{name: "d/.wh..."}), ErrDamaged},
		{"loop of links", "a/x", tarOf(file{name: "a", kind: tar.TypeSymlink, link: "b"}, file{name: "b", kind: tar.TypeSymlink, link: "a"}, file{name: "a/x"}), ErrDamaged},
		{"deep", "d/d/d/d/", tarOf(file{name: deep + "x"}), ErrDamaged},
		{"size that lies", "big", header("big", "77777777777\x00"), ErrDamaged},
		{"device", "dev/null", tarOf(file{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3}), ErrUnsupported},
		{"root that is a file", "./", tarOf(file{name: "./", kind: tar.TypeSymlink, link: outside}), ErrDamaged},
		{"attribute", "a", tarOf(file{name: "a", xattrs: map[string]string{"user.x": strings.Repeat("x", 64<<10+1)}}), ErrDamaged},
		{"escape sequences", `\x1b[2J`, tarOf(file{name: "\x1b[2J", kind: tar.TypeLink, link: "nowhere"}), ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			i := testImage{layers: [][]byte{baseTar, c.layer}, refs: []string{"evil"}}
			s := func() *fakeStore {
				s := newFakeStore(t)
				s.forbidDevices = true
				return s
			}
			v1 := digest.FromString("v1 id of " + string(c.layer)).Encoded()
			refuse(t, s, tarOf(dockerFiles(gzipped, i)...), c.want, "layer "+v1+"/layer.tar", `entry "`+c.entry)
			refuse(t, s, tarOf(ociFiles(zstded, i)...), c.want, "layer blobs/sha256/", `entry "`+c.entry)
		})
	}
	if data, err := os.ReadFile(canary); err != nil || string(data) != "alive" {
		t.Errorf("canary is %q (%v)", data, err)
	}
}

// Refused is an archive of an image whose last layer is not to be unpacked.
type Refused struct {
	Name, Entry string
	Archive     []byte
	Class       error
	FS          string // the only file system that refuses it; "" for all
}

// HostileLayers returns archives for a pool that forbids device nodes.
func HostileLayers() []Refused {
	links := []file{{name: "f", body: "1"}}
	for i := range 66_000 {
		links = append(links, file{name: fmt.Sprintf("l%d", i), kind: tar.TypeLink, link: "f"})
	}
	var all []Refused
	add := func(name, entry, fs string, class error, files ...file) {
		i := testImage{layers: [][]byte{baseTar, tarOf(files...)}, refs: []string{"evil"}}
		all = append(all, Refused{name, entry, tarOf(dockerFiles(gzipped, i)...), class, fs})
	}
	add("device", "dev/null", "", ErrUnsupported, file{name: "dev/null", kind: tar.TypeChar, major: 1, minor: 3})
	add("hard link out", "evil", "", ErrDamaged, file{name: "evil", kind: tar.TypeLink, link: "/proc/self/exe"})
	add("whiteout of dots", "d/.wh...", "", ErrDamaged, file{name: "d/.wh..."})
	add("many links", "l6", "ext4", ErrUnsupported, links...)
	return all
}

// TestHostileDocuments has manifests, configs and indexes that are made up to cost much, or to come out
// somewhere else as what they are not.
func TestHostileDocuments(t *testing.T) {
	nested := func(open, end string) string { return strings.Repeat(open, 100_000) + strings.Repeat(end, 100_000) }
	docker := dockerFiles(plain, appImage)
	oci := ociFiles(plain, appImage)
	manifest := func(text string) []byte { return tarOf(changed(docker, "manifest.json", text)...) }
	index := func(text string) []byte { return tarOf(changed(oci, "index.json", text)...) }
	config := func(edit func(c map[string]any)) []byte { return tarOf(withConfig(edit)...) }
	entry := func(config, tags, layers string) string {
		return `[{"Config":` + config + `,"RepoTags":[` + tags + `],"Layers":[` + layers + `]}]`
	}
	long := strings.Repeat("long/", 1<<20)
	loop := newLayout()
	inner := loop.blob(ocispec.MediaTypeImageIndex, nil)
	inner.Size = int64(len(index("")))
	for _, c := range []struct {
		name string
		data []byte
		want error
	}{
		{"deep manifest.json", manifest(nested("[", "]")), ErrDamaged},
		{"deep objects in manifest.json", manifest(`[{"Config":` + nested(`{"a":`, "}") + `}]`), ErrDamaged},
		{"deep index.json", index(nested(`{"manifests":[`, "]}")), ErrDamaged},
		{"deep config", tarOf(file{name: "manifest.json", body: `[{"Config":"c"}]`}, file{name: "c", body: nested("[", "]")}), ErrDamaged},
		{"large manifest.json", manifest("[" + strings.Repeat(" ", 64<<20) + "]"), ErrDamaged},
		{"large index.json", index("{" + strings.Repeat(" ", 64<<20) + "}"), ErrDamaged},
		{"many values", manifest("[" + strings.Repeat("0,", 1<<20) + "0]"), ErrDamaged},
		{"many images", manifest("[" + strings.Repeat("{},", maxImages) + "{}]"), ErrDamaged},
		{"many descriptors", index(`{"schemaVersion":2,"manifests":[` + strings.Repeat("{},", maxImages) + "{}]}"), ErrDamaged},
		{"many layers", manifest(entry(`"x"`, "", strings.Repeat(`"x",`, 1<<16)+`"x"`)), ErrDamaged},
		{"long name of a config", manifest(entry(`"`+long+`"`, "", "")), ErrDamaged},
		{"long name of a layer", manifest(strings.Replace(docker[slices.IndexFunc(docker, func(f file) bool { return f.name == "manifest.json" })].body, `"Layers":["`, `"Layers":["`+long, 1)), ErrDamaged},
		{"name with NUL", manifest(entry(`"a\u0000b"`, "", "")), ErrDamaged},
		{"long architecture", config(func(c map[string]any) { c["architecture"] = long }), ErrDamaged},
		{"architecture with escape sequences", config(func(c map[string]any) { c["architecture"] = "\x1b[2J" }), ErrDamaged},
		{"variant with a line break", config(func(c map[string]any) { c["variant"] = "v1\nv2" }), ErrDamaged},
		{"made in the year 10000", config(func(c map[string]any) { c["created"] = "9999-12-31T23:59:59-23:59" }), ErrDamaged},
		{"made before the year 0", config(func(c map[string]any) { c["created"] = "0000-01-01T00:00:00+23:59" }), ErrDamaged},
		{"made at no time", config(func(c map[string]any) { c["created"] = "yesterday" }), ErrDamaged},
		{"index that holds itself", tarOf(loop.done(inner)...), ErrDamaged},
		{"long media type", tarOf(withManifest(func(m map[string]any) { m["layers"].([]any)[0].(map[string]any)["mediaType"] = long })...), ErrUnsupported},
		{"long digest", index(`{"schemaVersion":2,"manifests":[{"digest":"sha256:` + long + `","size":1}]}`), ErrDamaged},
		{"long version", tarOf(changed(oci, "oci-layout", `{"imageLayoutVersion":"`+long+`"}`)...), ErrUnsupported},
	} {
		t.Run(c.name, func(t *testing.T) {
			refuse(t, func() *fakeStore { return newFakeStore(t) }, c.data, c.want)
		})
	}
}

// TestHostileButTaken loads what looks bad and is right.
func TestHostileButTaken(t *testing.T) {
	tags := make([]string, 50_000)
	for i := range tags {
		tags[i] = fmt.Sprintf("app:%d", i)
	}
	many := appImage
	many.refs = tags
	layout := newLayout()
	d := layout.image(gzipped, appImage)
	same := slices.Repeat([]ocispec.Descriptor{named(d, "app:1")}, 1000)
	twice := dockerFiles(plain, appImage, appImage, appImage)
	for _, c := range []struct {
		name string
		data []byte
	}{
		{"many names", tarOf(dockerFiles(plain, many)...)},
		{"one manifest many times", tarOf(layout.done(same...)...)},
		{"one image many times", tarOf(twice...)},
		{"a gigabyte of zeros at the end", trailing(pack(gzipped, tarOf(dockerFiles(plain, appImage)...)), 1<<30)},
		{"an index in each other", tarOf(layout.done(named(layout.index(layout.index(d), layout.index(d)), "app:1"))...)},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeStore(t)
			if _, err := load(t.Context(), s, write(t, c.data), LoadOptions{SpoolDir: t.TempDir()}); err != nil {
				t.Fatal(err)
			}
			if c.name != "many names" {
				checkApp(t, s)
			} else if len(s.docs) != len(tags)+1 {
				t.Errorf("%d documents", len(s.docs))
			}
		})
	}
}

// TestHostileHistory has steps that were made when no step can have been.
func TestHostileHistory(t *testing.T) {
	s := newFakeStore(t)
	data := tarOf(withConfig(func(c map[string]any) {
		c["history"] = []any{map[string]any{"created": "9999-12-31T23:59:59-23:59"}, map[string]any{"created": "0000-01-01T00:00:00+23:59"}}
	})...)
	if _, err := load(t.Context(), s, write(t, data), LoadOptions{}); err != nil {
		t.Fatal(err)
	}
	steps, err := history(t.Context(), s, "app:1")
	if err != nil || len(steps) != 2 {
		t.Fatalf("%v (%v)", steps, err)
	}
	if _, err := json.Marshal(steps); err != nil {
		t.Error(err)
	}
}

// trailing adds zeros to what is packed.
func trailing(packed []byte, n int64) []byte {
	var b bytes.Buffer
	b.Write(packed)
	w := gzip.NewWriter(&b)
	chunk := make([]byte, 1<<20)
	for ; n > 0; n -= int64(len(chunk)) {
		must(w.Write(chunk))
	}
	w.Close()
	return b.Bytes()
}

// TestHostileStreams has compressed layers that are made up.
func TestHostileStreams(t *testing.T) {
	frame := func(window byte, rest string) string { return "\x28\xb5\x2f\xfd\x00" + string(window) + rest }
	v1 := digest.FromString("v1 id of " + string(otherTar)).Encoded()
	layer := func(body string) []byte {
		return tarOf(changed(dockerFiles(plain, otherImage), v1+"/layer.tar", body)...)
	}
	for _, c := range []struct {
		name, body string
		want       error
	}{
		{"zstd window of 256 MiB", frame(18<<3, "\x01\x00\x00"), ErrUnsupported},
		{"zstd window of 3 TiB", frame(0xff, "\x01\x00\x00"), ErrUnsupported},
		{"zstd skippable frame without end", "\x50\x2a\x4d\x18\xff\xff\xff\xffx", ErrDamaged},
		{"zstd dictionary", "\x28\xb5\x2f\xfd\x23\x10\x01\x02\x03\x04", ErrDamaged},
		{"gzip name without end", "\x1f\x8b\x08\x08\x00\x00\x00\x00\x00\x00" + strings.Repeat("x", 1<<20), ErrDamaged},
		{"gzip of nothing", string(pack(gzipped, nil)), ErrDamaged}, // has another digest
		{"gzip and rubbish", string(pack(gzipped, otherTar)) + "rubbish", ErrDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			refuse(t, func() *fakeStore { return newFakeStore(t) }, layer(c.body), c.want, v1+"/layer.tar")
		})
	}
}

// TestHostileZeros loads many zeros in a few bytes, which become a hole. TestMemory has a gigabyte of them.
func TestHostileZeros(t *testing.T) {
	for _, kind := range []compression{gzipped, zstded} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		if err := w.WriteHeader(&tar.Header{Name: "zeros", Size: 64 << 20, Mode: 0o644, Uid: os.Getuid(), Gid: os.Getgid()}); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err == nil { // the content is missing
			t.Fatal("no error")
		}
		must(io.CopyN(&b, zeroReader{}, 64<<20+1024))
		i := testImage{layers: [][]byte{b.Bytes()}}
		s := newFakeStore(t)
		if _, err := load(t.Context(), s, write(t, tarOf(ociFiles(kind, i)...)), LoadOptions{}); err != nil {
			t.Fatal(err)
		}
		if blocks := allocated(t, s.root(i.layerName(0))+"/zeros"); blocks > 1<<20 {
			t.Errorf("%s: takes %d bytes", kind, blocks)
		}
	}
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// allocated is how many bytes of the disk a file takes.
func allocated(t *testing.T, name string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestHostileIndex has archives with more in them than an index may hold.
func TestHostileIndex(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := range 120_000 {
		name := fmt.Sprintf("%0150d/%090d", 0, i)
		if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
	}
	w.Close()
	refuse(t, func() *fakeStore { return newFakeStore(t) }, b.Bytes(), ErrDamaged, "too many files")
}
