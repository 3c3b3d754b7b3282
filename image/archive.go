package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	// The algorithms that OCI registers for digests.
	_ "crypto/sha256"
	_ "crypto/sha512"
)

const (
	maxDocument = 8 << 20 // bytes of a manifest, config or index; registries refuse more than 4 MiB
	maxLayers   = 1024    // of an image; overlay-based engines stop at 125
	maxImages   = 4096    // of an archive
)

// archived is an image as an archive describes it: its documents are checked, its layers not yet.
type archived struct {
	refs         []string // as the archive spells them
	id           digest.Digest
	config       []byte // exact bytes
	manifest     []byte // exact bytes; of manifest.json the image's entry where there is no OCI manifest
	manifestType string
	platform     string
	created      time.Time
	layers       []archivedLayer
}

// archivedLayer is a layer of an archive.
type archivedLayer struct {
	name      string        // of the node
	path      string        // in the archive
	blob      digest.Digest // of the bytes in the archive; "" where the archive does not spell it
	size      int64         // of them; -1 where the archive does not spell it
	mediaType string
	diffID    digest.Digest
}

// readArchive finds out what kind of archive t is and reads its images.
func readArchive(ctx context.Context, t tree, platform string) ([]*archived, error) {
	match, err := newPlatformMatcher(platform)
	if err != nil {
		return nil, err
	}
	oci := &ociReader{tree: t, match: match, seen: map[digest.Digest]*chosen{}}
	docker, err := has(t, "manifest.json")
	if err != nil {
		return nil, err
	}
	layout, err := has(t, "index.json")
	if err != nil {
		return nil, err
	}
	if docker {
		images, err := readDocker(ctx, t, oci)
		if err != nil || len(images) > 0 {
			return images, err
		}
	}
	if layout {
		return oci.images(ctx)
	}
	if docker {
		return nil, damaged("image archive: manifest.json names no image")
	}
	if old, err := has(t, "repositories"); err != nil || old {
		return nil, errors.Join(err, unsupported("image archive: written by docker save before Docker 1.10"))
	}
	return nil, damaged("image archive: neither manifest.json (docker save) nor index.json (OCI layout) in it")
}

// has reports whether the archive has a file.
func has(t tree, name string) (bool, error) {
	b, err := t.open(name)
	if errors.Is(err, errMissing) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, b.Close()
}

// readDocument reads a file of the archive that must fit into memory.
func readDocument(t tree, name string) ([]byte, error) {
	b, err := t.open(name)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.size > maxDocument {
		return nil, damaged("image archive: %s: %d bytes are too many for a manifest or config", name, b.size)
	}
	data := make([]byte, b.size)
	if _, err := io.ReadFull(io.NewSectionReader(b, 0, b.size), data); err != nil {
		return nil, fmt.Errorf("read image archive: %s: %w", name, err)
	}
	return data, nil
}

func parseDocument(name string, data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return damaged("image archive: %s: %v", name, err)
	}
	return nil
}

// blobPath is where an OCI layout keeps a blob.
func blobPath(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", damaged("image archive: digest %.200q: %v", d, err)
	}
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded(), nil
}

var blobFile = regexp.MustCompile(`^blobs/([a-z0-9]+)/([0-9a-f]+)$`)

// spelledDigest returns the digest that the path of a blob in an OCI layout spells, or "".
func spelledDigest(name string) digest.Digest {
	m := blobFile.FindStringSubmatch(strings.TrimPrefix(name, "./"))
	if m == nil {
		return ""
	}
	if d := digest.Digest(m[1] + ":" + m[2]); d.Validate() == nil {
		return d
	}
	return ""
}

// use fills in what the config says: id, platform, time, and the layers' diff ids and names.
func (a *archived) use(name string, config []byte) error {
	var c ocispec.Image
	if err := parseDocument(name, config, &c); err != nil {
		return err
	}
	if c.OS != "" && c.OS != "linux" {
		return unsupported("image archive: %s: image for %.40q", name, c.OS)
	}
	if c.RootFS.Type != "layers" {
		return damaged("image archive: %s: no config of an image: rootfs type %.40q", name, c.RootFS.Type)
	}
	if len(c.RootFS.DiffIDs) != len(a.layers) {
		return damaged("image archive: %s: %d diff ids for %d layers", name, len(c.RootFS.DiffIDs), len(a.layers))
	}
	if len(a.layers) > maxLayers {
		return damaged("image archive: %s: %d layers are too many", name, len(a.layers))
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := d.Validate(); err != nil {
			return damaged("image archive: %s: diff id %.200q: %v", name, d, err)
		}
		if d.Algorithm() != digest.SHA256 {
			return unsupported("image archive: %s: diff id by %s", name, d.Algorithm())
		}
		a.layers[i].diffID = d
	}
	for i, chain := range identity.ChainIDs(append([]digest.Digest(nil), c.RootFS.DiffIDs...)) {
		a.layers[i].name = LayerName(chain)
	}
	a.id, a.config, a.platform = digest.FromBytes(config), config, formatPlatform(c.Platform)
	if c.Created != nil {
		a.created = c.Created.UTC()
	}
	return nil
}

// chainOf is the chain id in the name of a layer.
func chainOf(layerName string) string { return strings.Replace(layerName, "-", ":", 1) }

// LayerName is the name of the node that holds the file system of a chain id.
func LayerName(chain digest.Digest) string {
	return chain.Algorithm().String() + "-" + chain.Encoded()
}
