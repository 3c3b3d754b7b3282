package layertar_test

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer/layertar"
)

// TestApplyOver8GiB has a file whose size does not fit the octal digits of a header.
func TestApplyOver8GiB(t *testing.T) {
	const size = 8<<30 + 512
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, format := range []tar.Format{tar.FormatGNU, tar.FormatPAX} {
			var header bytes.Buffer
			w := tar.NewWriter(&header)
			if err := w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: size, Format: format}); err != nil {
				t.Fatal(err)
			}
			data := io.MultiReader(&header, io.LimitReader(zeroReader{}, size-7), strings.NewReader("the end"), bytes.NewReader(archive(t, file("after", "1"))))
			root := d.tree(t)
			stats, err := layertar.Apply(context.Background(), root, data, layertar.ApplyOptions{})
			if err != nil || stats.Entries != 2 || stats.Bytes != size+1 {
				t.Fatalf("%v: %+v", err, stats)
			}
			f, err := os.Open(filepath.Join(root, "big"))
			if err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 10)
			n, err := f.ReadAt(got, size-7)
			if string(got[:n]) != "the end" || err != io.EOF {
				t.Errorf("%v: ends with %q (%v)", format, got[:n], err)
			}
			f.Close()
		}
	})
}
