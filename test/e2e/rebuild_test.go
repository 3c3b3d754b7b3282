package e2e_test

import (
	"testing"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/imagecheck"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestRebuiltFromEveryArchive loads the small image from each kind of archive that the tests have, one after
// another into a pool in which nothing of it is left, and writes all of its layers' tars again.
func TestRebuiltFromEveryArchive(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.XFS, testenv.Images)
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s := e.Open(t)
			for _, archive := range []string{"small.docker.tar", "small.oci.tar", "small.plain.oci.tar", "small.zstd.oci.tar", "small.oci"} {
				ctx := long(t)
				if _, err := image.Load(ctx, s, imageFile(t, archive), image.LoadOptions{}); err != nil {
					t.Errorf("%s: %v", archive, err)
					continue
				}
				if layers, err := imagecheck.Rebuilt(ctx, s); err != nil || layers != 4 {
					t.Errorf("%s: %d layers: %v", archive, layers, err)
				}
				_, err := image.Prune(ctx, s, image.PruneOptions{All: true})
				must(t, err)
				nodes, err := s.List(ctx)
				must(t, err)
				if len(nodes) > 0 {
					t.Fatalf("%s: %d nodes are left", archive, len(nodes))
				}
			}
		})
	}
}
