package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// applyRecorded applies an archive and returns its record.
func applyRecorded(t *testing.T, root string, data []byte) ([]byte, error) {
	t.Helper()
	var record bytes.Buffer
	rec := layertar.NewRecorder(bytes.NewReader(data), &record)
	if _, err := layertar.Apply(context.Background(), root, rec, layertar.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	err := rec.Close()
	return record.Bytes(), err
}

// TestRebuild makes the same bytes again, whoever wrote them.
func TestRebuild(t *testing.T) {
	tarFile := func(args ...string) func(t *testing.T) []byte {
		return func(t *testing.T) []byte {
			src, out := t.TempDir(), filepath.Join(t.TempDir(), "tar")
			apply(t, src, archive(t, everything()...))
			sparseFile(t, filepath.Join(src, "sparse"))
			command(t, "tar", append([]string{"-C", src, "-cf", out, "--numeric-owner"}, append(args, ".")...)...)
			data, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
	}
	tests := []struct {
		name string
		data func(t *testing.T) []byte
	}{
		{"empty", func(t *testing.T) []byte { return archive(t) }},
		{"no end marker", func(t *testing.T) []byte { d := archive(t, file("a", "1")); return d[:len(d)-1024] }},
		{"nothing at all", func(t *testing.T) []byte { return nil }},
		{"everything", func(t *testing.T) []byte { return archive(t, everything()...) }},
		{"padding", func(t *testing.T) []byte { return append(archive(t, file("a", "1")), make([]byte, 300_000)...) }},
		{"something after the end", func(t *testing.T) []byte { return append(archive(t, file("a", "1")), "trailer"...) }},
		{"whiteouts with content", func(t *testing.T) []byte {
			return archive(t, file(".wh.a", "surprise"), file("d/.wh..wh..opq", strings.Repeat("x", 200_000)), file(".wh..wh.plnk/1", "x"))
		}},
		{"through symlinks", func(t *testing.T) []byte { return archive(t, dir("p"), symlink("l", "/p"), file("l/x", "content")) }},
		{"names that lead up", func(t *testing.T) []byte { return archive(t, file("../../x", "content")) }},
		{"odd names", func(t *testing.T) []byte { return archive(t, file("a\x80\xff\n", "content"), file("\u00e4", "more")) }},
		{"directory twice", func(t *testing.T) []byte { return archive(t, file("a", "1"), dir("d"), dir("d")) }},
		{"GNU", tarFile("--format=gnu")},
		{"GNU sparse", tarFile("--format=gnu", "--sparse")},
		{"ustar", tarFile("--format=ustar", "--exclude=./d", "--exclude=./old")},
		{"PAX", tarFile("--format=posix", "--xattrs")},
		{"PAX sparse", tarFile("--format=posix", "--sparse")},
		{"PAX sparse 0.0", tarFile("--format=posix", "--sparse", "--sparse-version=0.0")},
		{"PAX sparse 0.1", tarFile("--format=posix", "--sparse", "--sparse-version=0.1")},
	}
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) {
				data, root := tt.data(t), d.tree(t)
				record, err := applyRecorded(t, root, data)
				if err != nil {
					t.Fatal(err)
				}
				var out bytes.Buffer
				if err := layertar.Rebuild(context.Background(), root, bytes.NewReader(record), &out); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(out.Bytes(), data) {
					t.Errorf("rebuilt %d bytes differ from the archive's %d", out.Len(), len(data))
				}
			})
		}
	})
}

// TestApplyRewritten: content that is nowhere in the tree cannot be brought back from a record.
func TestApplyRewritten(t *testing.T) {
	testenv.Need(t, testenv.Root)
	lower := archive(t, file("a", "0"), dir("d"), file("d/x", "0"), symlink("l", "d"))
	for _, tt := range []struct {
		name    string
		entries []entry
		want    bool
	}{
		{"other content", []entry{file("a", "1"), file("./a", "2")}, true},
		{"no content", []entry{file("a", "1"), file("a", "")}, true},
		{"other type", []entry{file("a", "1"), symlink("a", "b")}, true},
		{"by way of a link", []entry{file("d/x", "1"), file("l/x", "2")}, true},
		{"a hard link in its place", []entry{file("a", "1"), file("b", "2"), hardlink("a", "b")}, true},
		{"a directory with content", []entry{file("n/x", "1"), file("n", "")}, true},
		{"a link that was used", []entry{file("l/y", "1"), symlink("l", "a")}, true},
		{"a link that was used, and hidden", []entry{file("l/y", "1"), file(".wh.l", "")}, true},
		{"only the lower layer's", []entry{file("a", "1"), file("d", "2"), symlink("l", "a")}, false},
		{"the lower layer's, hidden before", []entry{file(".wh.a", ""), file("a", "1")}, false},
		{"a link to itself", []entry{file("a", "1"), hardlink("a", "a")}, false},
		{"a directory twice", []entry{dir("d"), file("d/y", "1"), dir("d")}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			apply(t, root, lower)
			if got := apply(t, root, archive(t, tt.entries...)); got.Rewritten != tt.want {
				t.Errorf("rewritten is %v", got.Rewritten)
			}
		})
	}
}

func TestRecorderNeedsAll(t *testing.T) {
	rec := layertar.NewRecorder(bytes.NewReader(archive(t, file("a", strings.Repeat("x", 10_000)))), io.Discard)
	if _, err := io.CopyN(io.Discard, rec, 2000); err != nil {
		t.Fatal(err)
	}
	if err := rec.Close(); !errors.Is(err, layertar.ErrInvalid) {
		t.Errorf("error %v", err)
	}
}

// TestRecorderFails: a full disk below the record does not disturb the layer.
func TestRecorderFails(t *testing.T) {
	data := archive(t, file("a", strings.Repeat("x", 1<<20)), file("b", "1"))
	rec := layertar.NewRecorder(bytes.NewReader(data), failingWriter{})
	got, err := io.ReadAll(rec)
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("reading through the recorder: error %v", err)
	}
	if err := rec.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("error %v", err)
	}
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestRebuildDamaged(t *testing.T) {
	testenv.Need(t, testenv.Root)
	data := archive(t, file("a", "content"), hardlink("b", "a"))
	tests := []struct {
		name   string
		damage func(root string, record []byte) []byte
	}{
		{"content", func(root string, r []byte) []byte { return damaged(os.WriteFile(root+"/a", []byte("CONTENT"), 0), r) }},
		{"size", func(root string, r []byte) []byte { return damaged(os.Truncate(root+"/a", 3), r) }},
		{"missing", func(root string, r []byte) []byte { return damaged(os.Remove(root+"/a"), r) }},
		{"a symlink out", func(root string, r []byte) []byte {
			return damaged(errors.Join(os.Remove(root+"/a"), os.Symlink("/etc/passwd", root+"/a")), r)
		}},
		{"record cut", func(_ string, r []byte) []byte { return r[:len(r)/2] }},
		{"record gone", func(string, []byte) []byte { return nil }},
		{"record is something else", func(string, []byte) []byte { return []byte("something else") }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			root := t.TempDir()
			record, err := applyRecorded(t, root, data)
			if err != nil {
				t.Fatal(err)
			}
			record = tt.damage(root, record)
			err = layertar.Rebuild(context.Background(), root, bytes.NewReader(record), io.Discard)
			if !errors.Is(err, layertar.ErrDamaged) {
				t.Errorf("error %v", err)
			}
		})
	}
}

func damaged(err error, record []byte) []byte {
	if err != nil {
		panic(err)
	}
	return record
}

func TestRebuildWriterFails(t *testing.T) {
	testenv.Need(t, testenv.Root)
	root := t.TempDir()
	record, err := applyRecorded(t, root, archive(t, file("a", "content")))
	if err != nil {
		t.Fatal(err)
	}
	err = layertar.Rebuild(context.Background(), root, bytes.NewReader(record), failingWriter{})
	if !errors.Is(err, os.ErrClosed) || errors.Is(err, layertar.ErrDamaged) {
		t.Errorf("error %v", err)
	}
}

func FuzzRecord(f *testing.F) {
	for _, data := range seeds(f) {
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		rec := layertar.NewRecorder(bytes.NewReader(data), io.Discard)
		got, err := io.ReadAll(rec)
		if err != nil || !bytes.Equal(got, data) {
			t.Fatalf("reading through the recorder: error %v", err)
		}
		_ = rec.Close()
	})
}

func FuzzRebuild(f *testing.F) {
	for _, data := range seeds(f) {
		var record bytes.Buffer
		rec := layertar.NewRecorder(bytes.NewReader(data), &record)
		_, _ = io.Copy(io.Discard, rec)
		if rec.Close() == nil {
			f.Add(record.Bytes())
		}
	}
	root := f.TempDir()
	if err := os.WriteFile(root+"/a", []byte("1"), 0o600); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, record []byte) {
		_ = layertar.Rebuild(context.Background(), root, bytes.NewReader(record), io.Discard)
	})
}

// seeds are archives for the fuzzers: good ones, hostile ones, and what GNU tar makes.
func seeds(t testing.TB) [][]byte {
	small := everything()
	all := [][]byte{archive(t, small[:len(small)-1]...), archive(t, lower()...), nil} // large seeds are slow
	for _, a := range hostile() {
		all = append(all, archive(t, a.entries("/outside")...))
	}
	for _, a := range append(lies(t), breaches(t, 20)...) { // thousands of folders take the fuzzer seconds
		if len(a.data) < 16<<10 {
			all = append(all, a.data)
		}
	}
	var gnu bytes.Buffer
	w := tar.NewWriter(&gnu)
	_ = w.WriteHeader(&tar.Header{Name: strings.Repeat("long/", 50) + "a", Size: 1, Mode: 0o600, Format: tar.FormatGNU})
	_, _ = w.Write([]byte("1"))
	_ = w.Close()
	return append(all, gnu.Bytes())
}
