package layertar_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer/layertar"
)

// TestApplyLongSymlinks: XFS has none of over 1023 bytes, as ext4 of a disk as small as here, for which the archive is
// not to blame.
func TestApplyLongSymlinks(t *testing.T) {
	eachDisk(t, func(t *testing.T, d *disk) {
		for _, n := range []int{1023, 1024, 4095} {
			root, target := d.tree(t), strings.Repeat("x", n)
			_, err := layertar.Apply(context.Background(), root, bytes.NewReader(archive(t, symlink("a", target))), layertar.ApplyOptions{})
			got, _ := os.Readlink(filepath.Join(root, "a"))
			refused := errors.Is(err, layertar.ErrUnsupported) && !errors.Is(err, layertar.ErrInvalid)
			if wanted := d.fs != "" && n > 1023; refused != wanted || !refused && got != target {
				t.Errorf("%d bytes: %v, link to %d bytes", n, err, len(got))
			}
		}
		name := strings.Repeat("n", 256)
		_, err := layertar.Apply(context.Background(), d.tree(t), bytes.NewReader(archive(t, symlink(name, "a"))), layertar.ApplyOptions{})
		if !errors.Is(err, layertar.ErrInvalid) {
			t.Errorf("a long name: %v", err)
		}
	})
}
