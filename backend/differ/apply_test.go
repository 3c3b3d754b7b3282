package differ_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/backend/differ"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

// TestApplyAsContainerd unpacks images layer by layer, and has containerd's own differ do the same.
func TestApplyAsContainerd(t *testing.T) {
	images := map[string][]string{"ext4": {"small.oci"}, "xfs": {"buildah.zstd.oci"}}
	if os.Getenv("DMLAYER_TEST_LONG") != "" {
		images["ext4"] = append(images["ext4"], "docker.oci", "buildah.plain.oci", "large.oci")
	}
	for fs, images := range images {
		h := newHost(t, pool.Spec{FS: fs, DataSize: 4 << 30})
		for _, image := range images {
			t.Run(fs+"/"+image, func(t *testing.T) {
				ours, theirs := "", ""
				for i, l := range layersOf(t, imageFile(t, image)) {
					data, err := os.ReadFile(l.file)
					must(t, err)
					desc := h.put(data, l.MediaType)
					one, two := fmt.Sprintf("%s-%d-ours", image, i), fmt.Sprintf("%s-%d-theirs", image, i)
					a, b := h.prepare(one+"-active", ours), h.prepare(two+"-active", theirs)
					if err := h.bothApply(desc, a, b); err != nil {
						t.Fatal(err)
					}
					h.sameTrees(t, a, b, named(t, data))
					must(t, h.sn.Commit(h.context(), one, one+"-active"))
					must(t, h.sn.Commit(h.context(), two, two+"-active"))
					ours, theirs = one, two
				}
				h.clear()
			})
		}
	}
}

type layerFile struct {
	ocispec.Descriptor
	file string
}

// layersOf lists the layers of a layout's only image.
func layersOf(t *testing.T, layout string) []layerFile {
	t.Helper()
	blob := func(d ocispec.Descriptor) string { return filepath.Join(layout, "blobs/sha256", d.Digest.Encoded()) }
	read := func(file string, v any) {
		text, err := os.ReadFile(file)
		must(t, errors.Join(err, json.Unmarshal(text, v)))
	}
	var index ocispec.Index
	var manifest ocispec.Manifest
	read(filepath.Join(layout, "index.json"), &index)
	read(blob(index.Manifests[0]), &manifest)
	var layers []layerFile
	for _, l := range manifest.Layers {
		layers = append(layers, layerFile{l, blob(l)})
	}
	return layers
}

// bothApply applies a layer to a with our differ and to b with containerd's. They must agree, and the error that both have is returned.
func (h *host) bothApply(desc ocispec.Descriptor, a, b []mount.Mount) error {
	h.t.Helper()
	want, theirs := apply.NewFileSystemApplier(h.content).Apply(h.context(), desc, b)
	got, ours := h.differ.Apply(h.context(), desc, a)
	if (theirs == nil) != (ours == nil) {
		h.t.Errorf("containerd says %v, we say %v", theirs, ours)
	}
	if ours == nil && (got.MediaType != want.MediaType || got.Digest != want.Digest || got.Size != want.Size) {
		h.t.Errorf("applied is %+v, containerd says %+v", got, want)
	}
	return ours
}

// sameTrees wants two snapshots to be the same.
func (h *host) sameTrees(t *testing.T, a, b []mount.Mount, named map[string]bool) {
	t.Helper()
	for _, d := range h.differences(a, b, named) {
		t.Error(d)
	}
}

// differences compares two snapshots. Directories that the layer does not name keep their time with us; containerd leaves the time of the unpacking. It also
// gives a file the time of the last entry that is a hard link to it, which is another one in archives that were not made of a file system.
func (h *host) differences(a, b []mount.Mount, named map[string]bool) (found []string) {
	h.t.Helper()
	h.mounted([][]mount.Mount{a, b}, func(dirs []string) {
		var err error
		found, err = treecmp.Compare(dirs[0], dirs[1], treecmp.Options{IgnoreTimes: func(rel string) bool {
			fi, err := os.Lstat(filepath.Join(dirs[0], rel))
			return err == nil && (fi.IsDir() && !named[rel] || !fi.IsDir() && fi.Sys().(*syscall.Stat_t).Nlink > 1)
		}})
		must(h.t, err)
	})
	return found
}

// named lists what a layer names, relative to the root.
func named(t *testing.T, data []byte) map[string]bool {
	t.Helper()
	r, err := compression.DecompressStream(bytes.NewReader(data))
	must(t, err)
	defer r.Close()
	names := map[string]bool{}
	for archive := tar.NewReader(r); ; {
		hdr, err := archive.Next()
		if err != nil {
			return names // also of what is no archive
		}
		names[strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")] = true
	}
}

var layerTime = time.Unix(1_700_000_000, 123_456_789)

// file and the others are entries of a tar.
func file(name, text string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Linkname: text, Mode: 0o644}
}

func dir(name string) tar.Header { return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o750} }

func pack(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		text := ""
		if e.Typeflag == tar.TypeReg {
			text, e.Linkname = e.Linkname, ""
		}
		e.Size, e.ModTime, e.Format = int64(len(text)), layerTime, tar.FormatPAX
		must(t, w.WriteHeader(&e))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

// TestApplyOddLayers has both differs unpack what is seldom, or wrong.
func TestApplyOddLayers(t *testing.T) {
	h := newHost(t, pool.Spec{})
	base := pack(t, dir("d"), file("d/one", "1"), dir("d/sub"), file("d/sub/deep", "x"), file("f", "file"), dir("e"), file("e/gone", "2"),
		tar.Header{Typeflag: tar.TypeSymlink, Name: "abs", Linkname: "/d"}, tar.Header{Typeflag: tar.TypeSymlink, Name: "out", Linkname: "../../../tmp"})
	m := h.prepare("base-active", "")
	_, err := h.differ.Apply(h.context(), h.put(base, ocispec.MediaTypeImageLayer), m)
	must(t, err)
	must(t, h.sn.Commit(h.context(), "base", "base-active"))
	whole := pack(t, file("new", strings.Repeat("content ", 1000)))
	cases := []struct {
		name string
		data []byte
	}{
		{"whiteouts", pack(t, file("d/.wh.one", ""), file("e/.wh.gone", ""), file("e/new", "n"))},
		{"whiteout of nothing", pack(t, file("d/.wh.never", ""))},
		{"opaque", pack(t, dir("d"), file("d/.wh..wh..opq", ""), file("d/two", "2"))},
		{"opaque behind", pack(t, dir("d"), file("d/two", "2"), file("d/.wh..wh..opq", ""))},
		{"aufs", pack(t, file(".wh..wh.aufs", ""), dir(".wh..wh.plnk"), file("after", "a"))},
		{"file for directory", pack(t, file("d", "now a file"))},
		{"directory for file", pack(t, dir("f"), file("f/below", "b"))},
		{"link for directory", pack(t, tar.Header{Typeflag: tar.TypeSymlink, Name: "d", Linkname: "e"})},
		{"hard link to lower", pack(t, tar.Header{Typeflag: tar.TypeLink, Name: "again", Linkname: "f", Mode: 0o644})},
		{"hard link to nothing", pack(t, tar.Header{Typeflag: tar.TypeLink, Name: "again", Linkname: "nowhere"})},
		{"through an absolute link", pack(t, file("abs/through", "t"))},
		{"through a link that leads out", pack(t, file("out/through", "t"))},
		{"parents not named", pack(t, file("no/such/dir/file", "p"))},
		{"traversing", pack(t, file("../../../escaped", "t"))},
		{"hard link that leads out", pack(t, tar.Header{Typeflag: tar.TypeLink, Name: "again", Linkname: "../../../etc/passwd"})},
		{"devices", pack(t, tar.Header{Typeflag: tar.TypeChar, Name: "null", Mode: 0o666, Devmajor: 1, Devminor: 3}, tar.Header{Typeflag: tar.TypeFifo, Name: "fifo", Mode: 0o600})},
		{"attributes", pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "attr", Linkname: "x", Mode: 0o4755, Uid: 1000, Gid: 1001, PAXRecords: map[string]string{"SCHILY.xattr.user.note": "kept"}})},
		{"large ids", pack(t, tar.Header{Typeflag: tar.TypeReg, Name: "ids", Linkname: "x", Mode: 0o600, Uid: 3_000_000_000, Gid: 4_000_000_000})},
		{"empty archive", pack(t)},
		{"no archive", []byte(strings.Repeat("this is no archive. ", 100))},
		{"cut short", whole[:1000]},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			h := *h
			h.t = t
			one, two := fmt.Sprintf("%d-ours", i), fmt.Sprintf("%d-theirs", i)
			a, b := h.prepare(one, "base"), h.prepare(two, "base")
			if err := h.bothApply(h.put(c.data, ocispec.MediaTypeImageLayer), a, b); err == nil {
				h.sameTrees(t, a, b, named(t, c.data))
			}
		})
	}
}

// TestApplyLeftToContainerd refuses, before anything is done, what another differ has to do.
func TestApplyLeftToContainerd(t *testing.T) {
	h := newHost(t, pool.Spec{})
	m := h.prepare("active", "")
	data := pack(t, file("f", "x"))
	desc := h.put(data, ocispec.MediaTypeImageLayer)
	of := func(mediaType string) ocispec.Descriptor {
		d := desc
		d.MediaType = mediaType
		return d
	}
	readOnly := []mount.Mount{{Type: m[0].Type, Source: m[0].Source, Options: []string{"ro"}}}
	mapped := []mount.Mount{{Type: m[0].Type, Source: m[0].Source, Options: append([]string{"uidmap=0:1000:1"}, m[0].Options...)}}
	absent := desc
	absent.Digest = "sha256:" + ocispec.DescriptorEmptyJSON.Digest[len("sha256:"):]
	payload := diff.WithPayloads(map[string]typeurl.Any{"decrypt": nil})
	for name, c := range map[string]struct {
		desc   ocispec.Descriptor
		mounts []mount.Mount
		opts   []diff.ApplyOpt
	}{
		"overlay":       {desc, []mount.Mount{{Type: "overlay", Source: "overlay", Options: []string{"upperdir=/tmp"}}}, nil},
		"bind":          {desc, []mount.Mount{{Type: "bind", Source: t.TempDir(), Options: []string{"rbind", "rw"}}}, nil},
		"two":           {desc, append(m[:1:1], m...), nil},
		"none":          {desc, nil, nil},
		"read-only":     {desc, readOnly, nil},
		"mapped":        {desc, mapped, nil},
		"below":         {desc, []mount.Mount{{Type: m[0].Type, Source: m[0].Source, Target: "below"}}, nil},
		"encrypted":     {of(ocispec.MediaTypeImageLayerGzip + "+encrypted"), m, nil},
		"wrapped":       {of("application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted"), m, nil},
		"erofs":         {of("application/vnd.erofs.layer.v1"), m, nil},
		"no media type": {of(""), m, nil},
		"config":        {of(ocispec.MediaTypeImageConfig), m, nil},
		"payload":       {desc, m, []diff.ApplyOpt{payload}},
		"absent":        {absent, m, nil},
	} {
		_, err := h.differ.Apply(h.context(), c.desc, c.mounts, c.opts...)
		if !errdefs.IsNotImplemented(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	h.mounted([][]mount.Mount{m}, func(dirs []string) {
		if _, err := os.Lstat(filepath.Join(dirs[0], "f")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("something was unpacked: %v", err)
		}
	})
}

// TestApplyFails unpacks what does not fit, is not allowed or is damaged: errors of the right class, which keep the next differ from trying again.
func TestApplyFails(t *testing.T) {
	h := newHost(t, pool.Spec{BaseSize: 16 << 20, ForbidDevices: true})
	m := h.prepare("active", "")
	_, err := h.differ.Apply(h.context(), h.put(pack(t, file("big", strings.Repeat("x", 24<<20))), ocispec.MediaTypeImageLayer), m)
	mustBe(t, err, errdefs.ErrResourceExhausted)
	_, err = h.differ.Apply(h.context(), h.put(pack(t, tar.Header{Typeflag: tar.TypeChar, Name: "null", Devmajor: 1, Devminor: 3}), ocispec.MediaTypeImageLayer), m)
	mustBe(t, err, errdefs.ErrFailedPrecondition)
	if errdefs.IsNotImplemented(err) {
		t.Errorf("another differ would bring the device: %v", err)
	}
	gz := append([]byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0}, make([]byte, 100)...)
	if _, err = h.differ.Apply(h.context(), h.put(gz, ocispec.MediaTypeImageLayerGzip), m); err == nil || errdefs.IsNotImplemented(err) {
		t.Errorf("damaged gzip: %v", err)
	}
	must(t, h.sn.Remove(h.context(), "active"))
	if _, err = h.differ.Apply(h.context(), h.put(pack(t), ocispec.MediaTypeImageLayer), m); !errdefs.IsNotFound(err) {
		t.Errorf("the snapshot is gone: %v", err)
	}
	must(t, h.pool.CheckLive(h.context()))
}

// stalled is a content store whose contents end in nothing until their reader has gone.
type stalled struct {
	content.Store
	reached chan struct{}
}

type stalledReader struct {
	content.ReaderAt
	ctx     context.Context
	reached chan struct{}
}

func (s stalled) ReaderAt(ctx context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	r, err := s.Store.ReaderAt(ctx, desc)
	return stalledReader{r, ctx, s.reached}, err
}

func (s stalledReader) Size() int64 { return s.ReaderAt.Size() + 1 }

func (s stalledReader) ReadAt(p []byte, off int64) (int, error) {
	if off < s.ReaderAt.Size() {
		return s.ReaderAt.ReadAt(p[:min(int64(len(p)), s.ReaderAt.Size()-off)], off)
	}
	close(s.reached)
	<-s.ctx.Done()
	return 0, s.ctx.Err()
}

// TestApplyCancelled lets the client go while the content store gives nothing more, and at each point of the work.
func TestApplyCancelled(t *testing.T) {
	h := newHost(t, pool.Spec{})
	desc := h.put(pack(t, file("f", strings.Repeat("x", 1<<20))), ocispec.MediaTypeImageLayer)
	m := h.prepare("active", "")
	ctx, cancel := context.WithCancel(h.context())
	slow := stalled{h.content, make(chan struct{})}
	go func() {
		<-slow.reached
		cancel()
	}()
	_, err := differ.New(h.store, slow, nil).Apply(ctx, desc, m)
	mustBe(t, err, context.Canceled)
	for hit := 1; ; hit++ {
		ctx, cancel := context.WithCancel(h.context())
		seen := 0
		fault.Set(func(string) error {
			if seen++; seen == hit {
				cancel()
			}
			return nil
		})
		_, err := h.differ.Apply(ctx, desc, m)
		fault.Set(nil)
		cancel()
		if err != nil {
			mustBe(t, err, context.Canceled)
		}
		if seen < hit {
			break
		}
	}
	must(t, h.sn.Commit(h.context(), "layer", "active"))
	must(t, h.pool.CheckLive(pooltest.Context(t)))
}
