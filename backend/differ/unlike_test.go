package differ_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/diff/apply"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/pool"
)

// packAsIs packs entries with the times that they have.
func packAsIs(t *testing.T, entries ...tar.Header) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		text := ""
		if e.Typeflag == tar.TypeReg || e.Typeflag == tar.TypeCont {
			text, e.Linkname = e.Linkname, ""
		}
		if e.ModTime.IsZero() {
			e.ModTime = layerTime
		}
		e.Size, e.Format = int64(len(text)), tar.FormatPAX
		must(t, w.WriteHeader(&e))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	must(t, w.Close())
	return b.Bytes()
}

func changed(h tar.Header, change func(*tar.Header)) tar.Header {
	change(&h)
	return h
}

func owned(h tar.Header, id int, mode int64) tar.Header {
	h.Uid, h.Gid, h.Mode = id, id, mode
	return h
}

func attribute(h tar.Header, name, value string) tar.Header {
	h.PAXRecords = map[string]string{"SCHILY.xattr." + name: value}
	return h
}

var mountedAt = regexp.MustCompile("only in .*:")

// TestApplyUnlikeContainerd has what docs/containerd.md says to be different, and nothing else.
func TestApplyUnlikeContainerd(t *testing.T) {
	h := newHost(t, pool.Spec{})
	base := packAsIs(t, file("f", "file"), attribute(dir("x"), "user.a", "1"), dir("d"), file("d/one", "1"))
	_, err := h.differ.Apply(h.context(), h.put(base, ocispec.MediaTypeImageLayer), h.prepare("base-active", ""))
	must(t, err)
	must(t, h.sn.Commit(h.context(), "base", "base-active"))
	link := tar.Header{Typeflag: tar.TypeLink, Name: "again", Linkname: "f", Mode: 0o644}
	device := tar.Header{Typeflag: tar.TypeChar, Name: "device", Mode: 0o600, Devmajor: 5000, Devminor: 3}
	cases := []struct {
		name         string
		data         []byte
		ours, theirs bool     // taken
		unlike       []string // ours, theirs; where both take it
	}{
		{"root", packAsIs(t, owned(dir("./"), 1000, 0o700)), true, true, []string{".: mode drwx------, drwxr-xr-x", ".: owner 1000:1000, 0:0"}},
		{"owner and mode of a hard link", packAsIs(t, owned(link, 1000, 0o600)), true, true, []string{"again: mode -rw-r--r--, -rw-------", "again: owner 0:0, 1000:1000", "f: mode -rw-r--r--, -rw-------", "f: owner 0:0, 1000:1000"}},
		{"attribute of a hard link", packAsIs(t, attribute(link, "user.l", "1")), true, true, []string{`again: attribute user.l missing, "1"`, `f: attribute user.l missing, "1"`}},
		{"directory again without its attribute", packAsIs(t, dir("x")), true, true, []string{`x: attribute user.a missing, "1"`}},
		{"before 1970", packAsIs(t, changed(file("old", "o"), func(h *tar.Header) { h.ModTime = time.Unix(-1000, 5) })), true, true, []string{"old: modified 1969-12-31T23:43:20.000000005Z, 1970-01-01T00:00:00.000000000Z"}},
		{"far future", packAsIs(t, changed(file("new", "n"), func(h *tar.Header) { h.ModTime = time.Unix(1<<36, 0) })), true, true, []string{"new: modified 2446-05-10T22:38:55.000000000Z, 1970-01-01T00:00:00.000000000Z"}},
		{"file and its whiteout", packAsIs(t, file("new", "n"), file(".wh.new", "")), true, true, []string{"new: only in one: -rw-r--r--"}},
		{"owner that means nobody", packAsIs(t, owned(file("nobody", "x"), 4294967295, 0o600)), false, true, nil},
		{"device number that the kernel has no bits for", packAsIs(t, device), false, true, nil},
		{"below a whiteout", packAsIs(t, file(".wh.foo/bar", "b")), false, true, nil},
		{"file as a parent", packAsIs(t, file("f/below", "x")), true, false, nil},
		{"contiguous file", packAsIs(t, changed(file("contiguous", ""), func(h *tar.Header) { h.Typeflag = tar.TypeCont })), true, false, nil},
		{"hard link onto itself", packAsIs(t, changed(link, func(h *tar.Header) { h.Name = "f" })), true, false, nil},
	}
	for i, c := range cases {
		a, b := h.prepare(fmt.Sprintf("%d-ours", i), "base"), h.prepare(fmt.Sprintf("%d-theirs", i), "base")
		desc := h.put(c.data, ocispec.MediaTypeImageLayer)
		_, theirs := apply.NewFileSystemApplier(h.content).Apply(h.context(), desc, b)
		_, ours := h.differ.Apply(h.context(), desc, a)
		if (ours == nil) != c.ours || (theirs == nil) != c.theirs {
			t.Errorf("%s: we say %v, containerd says %v", c.name, ours, theirs)
		}
		if ours != nil || theirs != nil {
			continue
		}
		got := h.differences(a, b, named(t, c.data))
		for i := range got {
			got[i] = mountedAt.ReplaceAllString(got[i], "only in one:")
		}
		if !slices.Equal(got, c.unlike) {
			t.Errorf("%s: %q, want %q", c.name, got, c.unlike)
		}
	}
}
