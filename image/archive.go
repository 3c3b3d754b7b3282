package image

import (
	"context"
	"errors"
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

// archived is an image as an archive describes it: its documents are checked, its layers not yet.
type archived struct {
	refs         []string // as the archive spells them
	odd          []string // names that are no references
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
	tar       int64 // bytes of the tar; known once the layer is there
}

// algorithm is what the digest of the layer's bytes is made with.
func (l *archivedLayer) algorithm() digest.Algorithm {
	if l.blob == "" {
		return digest.SHA256
	}
	return l.blob.Algorithm()
}

// open opens the layer's file, which must have the size that was claimed.
func (l *archivedLayer) open(ctx context.Context, t tree) (*blob, error) {
	b, err := t.open(ctx, l.path)
	if err != nil {
		return nil, err
	}
	if l.size >= 0 && b.size != l.size {
		err := damaged("has %d bytes, its manifest says %d", b.size, l.size)
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// readArchive finds out what kind of archive t is and reads its images.
func readArchive(ctx context.Context, t tree, platform string) ([]*archived, error) {
	oci, err := newOCIReader(t, platform)
	if err != nil {
		return nil, err
	}
	docker, err := oci.has(ctx, "manifest.json")
	if err != nil {
		return nil, err
	}
	layout, err := oci.has(ctx, "index.json")
	if err != nil {
		return nil, err
	}
	if docker {
		images, err := readDocker(ctx, oci)
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
	if old, err := oci.has(ctx, "repositories"); err != nil || old {
		return nil, errors.Join(err, unsupported("image archive: written by docker save before Docker 1.10"))
	}
	return nil, damaged("image archive: neither manifest.json (docker save) nor index.json (OCI layout) in it")
}

// foresee reads the images of a stream from the document that comes first, while most of it is still to
// come. What readArchive says in the end may be something else, about images and their names; not about
// the layers, whose names are digests of what is in them.
func foresee(ctx context.Context, t *streamTree, platform string) ([]*archived, error) {
	oci, err := newOCIReader(t, platform)
	if err != nil {
		return nil, err
	}
	oci.early = true
	switch name, err := t.first(ctx, "manifest.json", "index.json"); {
	case err != nil:
		return nil, err
	case name == "manifest.json":
		return readDocker(ctx, oci)
	}
	return oci.images(ctx)
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
func (r *ociReader) use(a *archived, name string, config []byte) error {
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
	if r.layers += len(a.layers); len(a.layers) > maxLayers || r.layers > maxAllLayers {
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
	if !platformWord.MatchString(c.Architecture) || !platformWord.MatchString(c.Variant) {
		return damaged("image archive: %s: platform %.40q, variant %.40q", name, c.Architecture, c.Variant)
	}
	a.id, a.config, a.platform = digest.FromBytes(config), config, formatPlatform(c.Platform)
	if c.Created != nil {
		if a.created = c.Created.UTC(); !fitsJSON(a.created) {
			return damaged("image archive: %s: made in the year %d", name, a.created.Year())
		}
	}
	return r.match.admit(a)
}

// platformWord is what an architecture or a variant looks like.
var platformWord = regexp.MustCompile(`^[A-Za-z0-9_.-]{0,64}$`)

// fitsJSON reports whether a time can be written as JSON: one that was read with another time zone may be
// just outside.
func fitsJSON(t time.Time) bool { return t.Year() >= 0 && t.Year() <= 9999 }

// chainOf is the chain id in the name of a layer.
func chainOf(layerName string) string { return strings.Replace(layerName, "-", ":", 1) }

// LayerName is the name of the node that holds the file system of a chain id.
func LayerName(chain digest.Digest) string {
	return chain.Algorithm().String() + "-" + chain.Encoded()
}
