package e2e_test

import (
	"context"
	"os"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/imagecheck"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

// kin are archives of the same images in different formats, by different programs.
type kin struct {
	name string

	// umoci is the archive that umoci's trees are made from: it has every layer of the others.
	umoci string

	archives []archive // the first one is loaded on XFS too
	long     bool      // only where DMLAYER_TEST_LONG asks for it
	top      bool      // only the tree of all layers is compared: the others would fill the machine's memory
}

// archive is a file or folder of scripts/images, and what loading it reports.
type archive struct {
	file string
	refs []string // "sha256:" stands for an id
}

var families = []kin{
	{name: "small", umoci: "small.docker.tar", archives: []archive{
		{"small.docker.tar", []string{"small:latest"}},
		{"small.oci", []string{"small:latest"}},
		{"small.oci.tar", []string{"small:latest"}},
		{"small.plain.oci.tar", []string{"small:latest"}},
		{"small.zstd.oci.tar", []string{"small:latest"}},
	}},
	{name: "docker", umoci: "docker.id.tar", archives: []archive{
		{"docker.several.tar", []string{"base:1", "app:1", "changed:1"}},
		{"docker.save.tar", []string{"app:1", "app:latest"}},
		{"docker.id.tar", []string{"sha256:"}},
		{"docker.oci", []string{"app:1"}},
		{"docker.zstd.oci.tar", []string{"app:1"}},
		{"docker.plain.oci.tar", []string{"app:1"}},
	}},
	{name: "buildah", umoci: "buildah.docker.tar", archives: []archive{
		{"buildah.docker.tar", []string{"docker.io/library/app:1", "localhost/app:1"}},
		{"buildah.oci", []string{"app:1"}},
		{"buildah.oci.tar", []string{"app:1"}},
		{"buildah.zstd.oci", []string{"app:1"}},
		{"buildah.docker-format.oci.tar", []string{"app:1"}},
		{"buildah.skopeo.docker.tar", []string{"docker.io/library/app:1"}},
		{"buildah.plain.oci", []string{"app:1"}},
	}},
	{name: "large", umoci: source, long: true, archives: []archive{{"large.oci", []string{"large:latest"}}}},
	{name: "distro", umoci: "distro.docker.tar", long: true, top: true, archives: []archive{
		{"distro.docker.tar", []string{"distro:latest"}},
		{"distro.oci.tar", []string{"distro:latest"}},
	}},
}

// TestFormatsEqualUmoci loads images of dockerd, buildah, skopeo and test/mkimage in all formats, and compares
// every entry of the tree of every layer, not only of the highest, with what umoci unpacks, and every layer's
// rebuilt tar with its diff id.
func TestFormatsEqualUmoci(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.XFS, testenv.Images)
	for _, k := range families {
		for _, fs := range []string{"ext4", "xfs"} {
			t.Run(k.name+"/"+fs, func(t *testing.T) {
				if k.long && os.Getenv("DMLAYER_TEST_LONG") == "" {
					t.Skip("takes minutes; DMLAYER_TEST_LONG=1 asks for it")
				}
				// Before the pool, so that the trees are there when the pool's clean-up is done.
				want := umociTrees(t, fsutil.Type(fs), imageFile(t, k.umoci)+".umoci", k.top)
				s := pooltest.New(t, pool.Spec{FS: fs, DataSize: 8 << 30, BaseSize: 4 << 30}).Open(t)
				archives := k.archives
				if fs == "xfs" {
					archives = archives[:1]
				}
				for _, a := range archives {
					loadAndCompare(t, s, a, want, k.top)
				}
			})
		}
	}
}

// loadAndCompare loads an archive into a pool that has none of its layers, and leaves none. It compares every layer's
// tree with umoci's, or only that of the highest.
func loadAndCompare(t *testing.T, s *layer.Store, a archive, want map[string]string, top bool) {
	t.Helper()
	ctx := long(t)
	loaded, err := image.Load(ctx, s, imageFile(t, a.file), image.LoadOptions{})
	if err != nil {
		t.Errorf("%s: %v", a.file, err)
		return
	}
	if !reported(loaded, a.refs) {
		t.Errorf("%s: loaded %v, want %v", a.file, loaded, a.refs)
	}
	if _, err := imagecheck.Rebuilt(ctx, s); err != nil {
		t.Errorf("%s: %v", a.file, err)
	}
	seen := map[string]bool{}
	for _, l := range loaded {
		i, err := image.Get(ctx, s, l.String())
		must(t, err)
		var chain string
		for n, lay := range i.Layers {
			chain = chainOf(chain, lay.DiffID)
			if !seen[chain] && (!top || n == len(i.Layers)-1) {
				seen[chain] = true
				compareLayer(ctx, t, s, a.file, lay.Name, want[chain])
			}
		}
	}
	_, err = image.Prune(ctx, s, image.PruneOptions{All: true})
	must(t, err)
	left, err := s.List(ctx)
	must(t, err)
	if len(left) > 0 {
		t.Fatalf("%s: %d nodes are left", a.file, len(left))
	}
}

// reported tells whether a load reported what it should, in that order.
func reported(loaded []image.Loaded, refs []string) bool {
	if len(loaded) != len(refs) {
		return false
	}
	for n, l := range loaded {
		if l.String() != refs[n] && (refs[n] != "sha256:" || !strings.HasPrefix(l.String(), refs[n])) {
			return false
		}
	}
	return true
}

// chainOf returns the chain id, as the image specification calls it, of a layer on a chain of others.
func chainOf(below, diffID string) string {
	if below == "" {
		return diffID
	}
	return digest.FromString(below + " " + diffID).String()
}

func compareLayer(ctx context.Context, t *testing.T, s *layer.Store, file, name, want string) {
	t.Helper()
	if want == "" {
		t.Errorf("%s: umoci unpacked no layer like %s", file, name)
		return
	}
	err := s.View(ctx, []string{name}, func(_ context.Context, roots []string) error {
		differences, err := treecmp.Compare(roots[0], want, treecmp.AgainstUmoci())
		if len(differences) > 0 {
			t.Errorf("%s: layer %s differs from umoci's tree:\n%s", file, name, strings.Join(differences, "\n"))
		}
		return err
	})
	must(t, err)
}
