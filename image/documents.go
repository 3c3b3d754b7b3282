package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What an archive may ask this package to keep in memory.
const (
	maxDocument  = 8 << 20  // bytes of a manifest, config or index; registries refuse more than 4 MiB
	maxDocuments = 32 << 20 // bytes of all that are read
	maxBlobsRead = 65536    // how many are read
	maxValues    = 1 << 17  // of a document: values in lists and objects
	maxLayers    = 1024     // of an image; overlay-based engines stop at 125
	maxAllLayers = 65536    // of all images
	maxImages    = 4096     // of an archive
)

// documents reads the manifests, configs and indexes of an archive, as many as fit into memory.
type documents struct {
	tree
	read, bytes int
}

// has reports whether the archive has a file.
func (d *documents) has(ctx context.Context, name string) (bool, error) {
	b, err := d.open(ctx, name)
	if errors.Is(err, errMissing) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, b.Close()
}

// document reads a file of the archive.
func (d *documents) document(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b, err := d.open(ctx, name)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	if b.size > maxDocument {
		return nil, damaged("image archive: %s: %d bytes are too many for a manifest or config", name, b.size)
	}
	d.read++
	d.bytes += int(b.size)
	if d.read > maxBlobsRead || d.bytes > maxDocuments {
		return nil, damaged("image archive: %s: too many manifests and configs", name)
	}
	data := make([]byte, b.size)
	if _, err := io.ReadFull(b.reader(ctx), data); err != nil {
		return nil, fmt.Errorf("read image archive: %s: %w", name, err)
	}
	return data, nil
}

// parseDocument decodes JSON. It refuses lists so long that what is made of them would not fit into
// memory: a few bytes can become a few hundred.
func parseDocument(name string, data []byte, into any) error {
	if bytes.Count(data, []byte{','}) > maxValues {
		return damaged("image archive: %s: too many values", name)
	}
	if err := json.Unmarshal(data, into); err != nil {
		return damaged("image archive: %s: %v", name, err)
	}
	return nil
}

// descriptors is a list of them that is not longer than any that is of use.
type descriptors []ocispec.Descriptor

func (d *descriptors) UnmarshalJSON(data []byte) error {
	var raw []json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil || raw == nil {
		return err
	}
	if len(raw) > maxImages {
		return fmt.Errorf("%d descriptors are too many", len(raw))
	}
	*d = make(descriptors, len(raw))
	for i := range raw {
		if err := json.Unmarshal(raw[i], &(*d)[i]); err != nil {
			return err
		}
	}
	return nil
}

// document is a manifest or an index of an OCI layout: both in one, because either may claim to be the
// other.
type document struct {
	SchemaVersion int                 `json:"schemaVersion"`
	MediaType     string              `json:"mediaType"`
	ArtifactType  string              `json:"artifactType"`
	Config        *ocispec.Descriptor `json:"config"`
	Layers        descriptors         `json:"layers"`
	Manifests     descriptors         `json:"manifests"`
}

func parseOCI(name string, data []byte) (document, error) {
	var doc document
	if err := parseDocument(name, data, &doc); err != nil {
		return doc, err
	}
	if doc.SchemaVersion != 2 {
		return doc, unsupported("image archive: %s: schema version %d", name, doc.SchemaVersion)
	}
	if doc.Manifests != nil && (doc.Layers != nil || doc.Config != nil) {
		return doc, damaged("image archive: %s: both a manifest and an index", name)
	}
	isIndex := doc.MediaType == ocispec.MediaTypeImageIndex || doc.MediaType == mediaTypeDockerList
	isManifest := doc.MediaType == ocispec.MediaTypeImageManifest || doc.MediaType == mediaTypeDockerManifest
	if isIndex && (doc.Layers != nil || doc.Config != nil) || isManifest && doc.Manifests != nil {
		return doc, damaged("image archive: %s: content does not fit media type %s", name, doc.MediaType)
	}
	return doc, nil
}
