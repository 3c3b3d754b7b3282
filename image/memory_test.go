package image_test

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// maxMemory is what a load takes at most, whatever it loads.
const maxMemory = 100 << 20

// entriesEnv is how many entries the layer of many has; a million takes minutes.
const entriesEnv = "DMLAYER_IMAGE_TEST_ENTRIES"

// TestMemory loads what is large in some way in a process of its own, and looks at how much memory that
// has ever had.
func TestMemory(t *testing.T) {
	entries := 100000
	if n, err := strconv.Atoi(os.Getenv(entriesEnv)); err == nil {
		entries = n
	}
	for _, c := range []struct {
		name   string
		stream bool
		make   func(t *testing.T) string
	}{
		{"large image", false, largeImage},
		{"large image as a stream", true, largeImage},
		{"many entries", false, func(t *testing.T) string { return packedLayer(t, manyEntries(entries)) }},
		{"deep directories", false, func(t *testing.T) string { return packedLayer(t, deepEntries(20000)) }},
		{"gigabyte of zeros", false, func(t *testing.T) string { return packedLayer(t, zeroFile(1<<30)) }},
		{"many files beside the image", false, manyFiles},
	} {
		t.Run(c.name, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.DM, testenv.XFS, testenv.Images)
			source := c.make(t)
			e := pooltest.New(t, pool.Spec{FS: "xfs", DataSize: 8 << 30, BaseSize: 8 << 30})
			what := "load " + source
			if c.stream {
				what = "stream"
			}
			peak := peakOf(t, childCommand(t.Context(), t, e, what, 0), source)
			t.Logf("%d MiB", peak>>20)
			if peak > maxMemory {
				t.Errorf("took %d MiB of memory at some time", peak>>20)
			}
		})
	}
}

var rssLine = regexp.MustCompile(`(?m)^VmHWM:\s+(\d+) kB$`)

// peakOf runs a command with a file as its input, and returns the largest size that it ever had.
func peakOf(t *testing.T, cmd *exec.Cmd, input string) int64 {
	t.Helper()
	in := must[*os.File](t)(os.Open(input))
	defer in.Close()
	cmd.Stdin, cmd.Env = in, append(cmd.Env, peakEnv+"=1")
	out := must[[]byte](t)(cmd.Output())
	m := rssLine.FindSubmatch(out)
	if m == nil {
		t.Fatalf("no size in %q", out)
	}
	return must[int64](t)(strconv.ParseInt(string(m[1]), 10, 64)) << 10
}

func largeImage(t *testing.T) string {
	return filepath.Join(must[string](t)(testenv.CacheDir()), "images", "large.oci.tar")
}

// packedLayer makes an archive of docker save with one gzip layer, without ever having it in memory.
func packedLayer(t *testing.T, write func(w *tar.Writer) error) string {
	t.Helper()
	layerFile := filepath.Join(t.TempDir(), "layer")
	f := must[*os.File](t)(os.Create(layerFile))
	diff := sha256.New()
	buffered := bufio.NewWriterSize(f, 1<<20)
	z := must[*gzip.Writer](t)(gzip.NewWriterLevel(buffered, gzip.BestSpeed))
	w := tar.NewWriter(io.MultiWriter(z, diff))
	for _, err := range []error{write(w), w.Close(), z.Close(), buffered.Flush(), f.Close()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	config := must[[]byte](t)(json.Marshal(map[string]any{
		"os": "linux", "architecture": "amd64", "rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", diff.Sum(nil))}},
	}))
	archive := filepath.Join(t.TempDir(), "archive.tar")
	writeArchive(t, archive, func(w *tar.Writer) {
		addFile(t, w, "manifest.json", []byte(`[{"Config":"config.json","RepoTags":["big"],"Layers":["layer"]}]`))
		addFile(t, w, "config.json", config)
		in := must[*os.File](t)(os.Open(layerFile))
		defer in.Close()
		info := must[os.FileInfo](t)(in.Stat())
		if err := w.WriteHeader(&tar.Header{Name: "layer", Size: info.Size(), Mode: 0o644}); err != nil {
			t.Fatal(err)
		}
		must[int64](t)(io.Copy(w, in))
	})
	return archive
}

func writeArchive(t *testing.T, name string, fill func(w *tar.Writer)) {
	t.Helper()
	f := must[*os.File](t)(os.Create(name))
	defer f.Close()
	buffered := bufio.NewWriterSize(f, 1<<20)
	w := tar.NewWriter(buffered)
	fill(w)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := buffered.Flush(); err != nil {
		t.Fatal(err)
	}
}

func addFile(t *testing.T, w *tar.Writer, name string, body []byte) {
	t.Helper()
	if err := w.WriteHeader(&tar.Header{Name: name, Size: int64(len(body)), Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	must[int](t)(w.Write(body))
}

// manyEntries writes empty files, a thousand to a directory.
func manyEntries(n int) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		for i := range n {
			if i%1000 == 0 {
				if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/many/%06d/", i/1000), Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1e9, 0)}); err != nil {
					return err
				}
			}
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("usr/share/many/%06d/file-%06d", i/1000, i), Mode: 0o644, ModTime: time.Unix(1e9, 0)}); err != nil {
				return err
			}
		}
		return nil
	}
}

// deepEntries writes directories thirty deep, each with a time of its own.
func deepEntries(n int) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		for i := range n {
			name := ""
			for d := range 30 {
				name += fmt.Sprintf("d%d/", i>>(29-d))
			}
			if err := w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(1e9+int64(i), 5)}); err != nil {
				return err
			}
		}
		return nil
	}
}

func zeroFile(size int64) func(w *tar.Writer) error {
	return func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "zeros", Size: size, Mode: 0o644}); err != nil {
			return err
		}
		zeros := make([]byte, 1<<20)
		for ; size > 0; size -= int64(len(zeros)) {
			if _, err := w.Write(zeros); err != nil {
				return err
			}
		}
		return nil
	}
}

// manyFiles is an archive with nearly as many files as one may have, of which the image needs three.
func manyFiles(t *testing.T) string {
	archive := filepath.Join(t.TempDir(), "archive.tar")
	small := packedLayer(t, zeroFile(0))
	writeArchive(t, archive, func(w *tar.Writer) {
		in := must[*os.File](t)(os.Open(small))
		defer in.Close()
		for r := tar.NewReader(in); ; {
			h, err := r.Next()
			if err == io.EOF {
				break
			}
			addFile(t, w, h.Name, must[[]byte](t)(io.ReadAll(r)))
		}
		for i := range 24<<20/(64+20) - 100 {
			addFile(t, w, fmt.Sprintf("beside/%013d", i), nil)
		}
	})
	return archive
}
