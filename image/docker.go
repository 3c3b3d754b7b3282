package image

import (
	"context"
	"encoding/json"
	"path"
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// mediaTypeDockerEntry is what an Image's Manifest is where the archive had no OCI manifest: the image's
// entry in manifest.json.
const mediaTypeDockerEntry = "application/vnd.dmlayer.docker-archive.entry+json"

// dockerEntry is an image in the manifest.json of a docker save archive.
type dockerEntry struct {
	Config       string
	RepoTags     []string
	Layers       []string
	LayerSources map[digest.Digest]ocispec.Descriptor
}

// readDocker reads the images of manifest.json, of which there may be none.
func readDocker(ctx context.Context, oci *ociReader) ([]*archived, error) {
	data, err := oci.document(ctx, "manifest.json")
	if err != nil {
		return nil, err
	}
	var entries []json.RawMessage
	if err := parseDocument("manifest.json", data, &entries); err != nil {
		return nil, err
	}
	if len(entries) > maxImages {
		return nil, damaged("image archive: manifest.json: %d images are too many", len(entries))
	}
	var images []*archived
	for _, raw := range entries {
		a, err := readDockerEntry(ctx, raw, oci)
		if err != nil {
			return nil, err
		}
		images = append(images, a)
	}
	return images, nil
}

func readDockerEntry(ctx context.Context, raw json.RawMessage, oci *ociReader) (*archived, error) {
	var e dockerEntry
	if err := parseDocument("manifest.json", raw, &e); err != nil {
		return nil, err
	}
	if e.Config == "" {
		return nil, damaged("image archive: manifest.json: an image without a config")
	}
	config, err := oci.document(ctx, e.Config)
	if err != nil {
		return nil, err
	}
	if want := configDigest(e.Config); want != "" && digest.FromBytes(config) != want {
		return nil, damaged("image archive: %s has the digest %s", e.Config, digest.FromBytes(config))
	}
	a := &archived{manifest: raw, manifestType: mediaTypeDockerEntry}
	for _, p := range e.Layers {
		if _, err := cleanName(p); err != nil {
			return nil, err
		}
		a.layers = append(a.layers, archivedLayer{path: p, blob: spelledDigest(p), size: -1, mediaType: ocispec.MediaTypeImageLayer})
	}
	if err := oci.use(a, e.Config, config); err != nil {
		return nil, err
	}
	for i, l := range a.layers {
		if d, ok := e.LayerSources[l.diffID]; ok && d.Digest == l.blob && layerTypes[d.MediaType] {
			a.layers[i].mediaType = d.MediaType
		}
	}
	a.refs, a.odd = dockerRefs(e.RepoTags)
	if oci.early {
		return a, nil // the layout may come much later
	}
	return a, a.useManifestOf(ctx, oci)
}

// dockerRefs returns the names of an image that can be references, and those that cannot.
func dockerRefs(tags []string) (refs, odd []string) {
	for _, ref := range tags {
		if ref == "" || ref == "<none>:<none>" {
			continue
		}
		if _, err := normalize(ref); err != nil {
			odd = append(odd, ref)
			continue
		}
		refs = append(refs, ref)
	}
	return refs, odd
}

// useManifestOf takes over the OCI manifest of the same image where the archive has it too, as those of
// Docker 25, containerd and nerdctl do: manifest.json has the names, the layout the rest.
func (a *archived) useManifestOf(ctx context.Context, oci *ociReader) error {
	m, err := oci.manifestFor(ctx, a.id)
	if err != nil || m == nil || len(m.manifest.Layers) != len(a.layers) {
		return err
	}
	for i, d := range m.manifest.Layers {
		if a.layers[i].blob != d.Digest {
			return nil // the names of other files: not the manifest of these layers
		}
	}
	for i, d := range m.manifest.Layers {
		a.layers[i].size = d.Size
		if layerTypes[d.MediaType] {
			a.layers[i].mediaType = d.MediaType
		}
	}
	a.manifest, a.manifestType = m.raw, m.mediaType
	if len(a.refs) == 0 && m.ref != "" {
		a.refs = []string{m.ref}
	}
	return nil
}

var hexName = regexp.MustCompile(`^(?:sha256:)?([0-9a-f]{64})(?:\.json)?$`)

// configDigest returns the digest that the name of a config file spells, or "".
func configDigest(name string) digest.Digest {
	if m := hexName.FindStringSubmatch(path.Base(name)); m != nil && !strings.HasPrefix(name, "blobs/sha512/") {
		return digest.NewDigestFromEncoded(digest.SHA256, m[1])
	}
	return ""
}
