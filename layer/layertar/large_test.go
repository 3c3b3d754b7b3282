package layertar_test

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer/layertar"
)

// tarWritten returns an archive that is written while it is read.
func tarWritten(write func(w *tar.Writer) error) io.Reader {
	r, w := io.Pipe()
	go func() {
		buf := bufio.NewWriterSize(w, 1<<20)
		tw := tar.NewWriter(buf)
		err := write(tw)
		if err == nil {
			err = errors.Join(tw.Close(), buf.Flush())
		}
		w.CloseWithError(err)
	}()
	return r
}

// TestApplyLargeFile applies a file whose size needs more digits than the oldest headers have, and which
// says something at its end only.
func TestApplyLargeFile(t *testing.T) {
	const size, tail = 8<<30 + 5, "the end"
	eachDisk(t, func(t *testing.T, d *disk) {
		root := d.tree(t)
		format := tar.FormatGNU // one form for each disk: eight gigabytes take their time
		if d.fs == "xfs" {
			format = tar.FormatPAX
		}
		r := tarWritten(func(w *tar.Writer) error {
			if err := w.WriteHeader(&tar.Header{Name: "large", Typeflag: tar.TypeReg, Mode: 0o644, Size: size, Format: format}); err != nil {
				return err
			}
			_, err := io.Copy(w, io.MultiReader(io.LimitReader(zeroReader{}, size-int64(len(tail))), bytes.NewReader([]byte(tail))))
			return err
		})
		if _, err := layertar.Apply(context.Background(), root, r, layertar.ApplyOptions{}); err != nil {
			t.Fatal(err)
		}
		checkLargeFile(t, filepath.Join(root, "large"), size, tail)
	})
}

func checkLargeFile(t *testing.T, path string, size int64, tail string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes, of which %d take room, error %v", st.Size, st.Blocks*512, err)
	}
	got := make([]byte, len(tail)+1)
	if _, err := f.ReadAt(got, size-int64(len(got))); err != nil || string(got) != "\x00"+tail {
		t.Errorf("ends with %q, error %v", got, err)
	}
}

// TestApplyManyEntries applies a layer with 100,000 entries in one directory, and one that hides every
// second of them.
func TestApplyManyEntries(t *testing.T) {
	const entries = 100_000
	eachDisk(t, func(t *testing.T, d *disk) {
		root := d.tree(t)
		all := tarWritten(func(w *tar.Writer) error {
			for i := range entries {
				h := tar.Header{Name: fmt.Sprintf("d/%06d", i), Typeflag: tar.TypeReg, Mode: 0o644, ModTime: noon, Format: tar.FormatPAX}
				if i%8 != 0 { // a small disk has not so many inodes
					h.Typeflag, h.Linkname = tar.TypeLink, fmt.Sprintf("d/%06d", i&^7)
				}
				if err := w.WriteHeader(&h); err != nil {
					return err
				}
			}
			return nil
		})
		half := tarWritten(func(w *tar.Writer) error {
			for i := 0; i < entries; i += 2 {
				if err := w.WriteHeader(&tar.Header{Name: fmt.Sprintf("d/.wh.%06d", i), Typeflag: tar.TypeReg}); err != nil {
					return err
				}
			}
			return nil
		})
		applyAndCount(t, root, all, entries)
		applyAndCount(t, root, half, entries/2)
	})
}

func applyAndCount(t *testing.T, root string, r io.Reader, want int) {
	t.Helper()
	if _, err := layertar.Apply(context.Background(), root, r, layertar.ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(filepath.Join(root, "d"))
	if err != nil || len(names) != want {
		t.Errorf("%d entries, want %d, error %v", len(names), want, err)
	}
	if fi, err := os.Stat(filepath.Join(root, "d")); err != nil || !fi.ModTime().Equal(noon) {
		t.Errorf("directory of %v, error %v", fi.ModTime(), err)
	}
}
