package e2e_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/fsutil"
)

// umociTrees unpacks an image of a layout once for every layer, up to that layer, or only once, on a file system of the
// kind, and returns the trees by chain id.
func umociTrees(t *testing.T, fs fsutil.Type, layout string, top bool) map[string]string {
	t.Helper()
	trees := map[string]string{}
	mnt := scratch(t, fs)
	var chain string
	for n := 1; ; n++ {
		cut := filepath.Join(t.TempDir(), "layout")
		diffIDs, err := firstLayers(layout, cut, n)
		must(t, err)
		chain = chainOf(chain, diffIDs[n-1].String())
		if top && n < len(diffIDs) {
			continue
		}
		bundle := filepath.Join(mnt, fmt.Sprint(n))
		cmd := exec.CommandContext(long(t), "umoci", "unpack", "--image", cut+":image", bundle)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out)
		}
		trees[chain] = filepath.Join(bundle, "rootfs")
		if n == len(diffIDs) {
			return trees
		}
	}
}

// firstLayers makes a layout whose only image, "image", has the first layers of that of another, and returns the
// diff ids of all layers of the other. Blobs are symbolic links.
func firstLayers(from, to string, layers int) ([]digest.Digest, error) {
	var index v1.Index
	if err := readJSON(filepath.Join(from, v1.ImageIndexFile), &index); err != nil {
		return nil, err
	}
	var manifest v1.Manifest
	if err := readJSON(blobOf(from, index.Manifests[0].Digest), &manifest); err != nil {
		return nil, err
	}
	var config v1.Image
	if err := readJSON(blobOf(from, manifest.Config.Digest), &config); err != nil {
		return nil, err
	}
	all := config.RootFS.DiffIDs
	if err := os.MkdirAll(filepath.Dir(blobOf(to, all[0])), 0o755); err != nil {
		return nil, err
	}
	manifest.Layers = manifest.Layers[:layers]
	for _, l := range manifest.Layers {
		err := os.Symlink(blobOf(from, l.Digest), blobOf(to, l.Digest))
		if err != nil && !errors.Is(err, os.ErrExist) { // a layer may be there twice
			return nil, err
		}
	}
	config.RootFS.DiffIDs, config.History = all[:layers], nil
	if err := writeBlob(to, &manifest.Config, config); err != nil {
		return nil, err
	}
	desc := v1.Descriptor{MediaType: v1.MediaTypeImageManifest, Annotations: map[string]string{v1.AnnotationRefName: "image"}}
	if err := writeBlob(to, &desc, manifest); err != nil {
		return nil, err
	}
	index.Manifests = []v1.Descriptor{desc}
	return all, errors.Join(writeJSON(filepath.Join(to, v1.ImageIndexFile), index),
		writeJSON(filepath.Join(to, v1.ImageLayoutFile), v1.ImageLayout{Version: v1.ImageLayoutVersion}))
}

func blobOf(layout string, d digest.Digest) string {
	return filepath.Join(layout, v1.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// writeBlob writes a blob and describes it.
func writeBlob(layout string, d *v1.Descriptor, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	d.Digest, d.Size = digest.FromBytes(data), int64(len(data))
	return os.WriteFile(blobOf(layout, d.Digest), data, 0o644)
}

func writeJSON(file string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return os.WriteFile(file, data, 0o644)
}

func readJSON(file string, v any) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, v)
}
