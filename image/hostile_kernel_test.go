package image_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestHostilePool loads archives, one after the other, whose last layer is refused while it is unpacked:
// nothing of them stays in the pool.
func TestHostilePool(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Feature(fs))
			e := pooltest.New(t, pool.Spec{FS: fs, ForbidDevices: true})
			s, ctx := e.Open(t), pooltest.Context(t)
			for _, c := range image.HostileLayers() {
				if c.FS != "" && c.FS != fs {
					continue
				}
				source := filepath.Join(t.TempDir(), "archive")
				if err := os.WriteFile(source, c.Archive, 0o600); err != nil {
					t.Fatal(err)
				}
				_, err := image.Load(ctx, s, source, image.LoadOptions{})
				if !errors.Is(err, c.Class) || !strings.Contains(err.Error(), `entry "`+c.Entry) || !strings.Contains(err.Error(), "/layer.tar") {
					t.Errorf("%s: %v", c.Name, err)
				}
				if names := nodeNames(t, s); len(names) > 0 {
					t.Errorf("%s: left %q", c.Name, names)
				}
				if docs := must[[]layer.Document](t)(s.Documents(ctx, "image")); len(docs) > 0 {
					t.Errorf("%s: left %d images", c.Name, len(docs))
				}
			}
		})
	}
}
