package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	mediaTypeDockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	mediaTypeDockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	mediaTypeDockerConfig   = "application/vnd.docker.container.image.v1+json"

	annotationImageName = "io.containerd.image.name" // a full reference; OCI's own is often a tag only
	annotationDockerRef = "vnd.docker.reference.type"

	maxIndexDepth = 8
)

// layerTypes are the media types whose bytes are a tar, compressed or not.
var layerTypes = map[string]bool{
	ocispec.MediaTypeImageLayer:                                    true,
	ocispec.MediaTypeImageLayerGzip:                                true,
	ocispec.MediaTypeImageLayerZstd:                                true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar":      true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": true,
	"application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": true,
	"application/vnd.docker.image.rootfs.diff.tar":                 true,
	"application/vnd.docker.image.rootfs.diff.tar.gzip":            true,
	"application/vnd.docker.image.rootfs.diff.tar.zstd":            true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar":         true,
	"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    true,
}

// errNoImage marks a well-formed entry of an index that is something else than an image.
var errNoImage = errors.New("no container image")

// chosen is the manifest that a descriptor leads to.
type chosen struct {
	manifest  document
	raw       []byte
	mediaType string
	platform  *ocispec.Platform // as the index spells it; nil if it does not
	ref       string            // the name that index.json gives it; "" for none
	odd       []string          // names that it gives it and that are no references
	err       error
}

// ociReader reads the documents of an OCI layout.
type ociReader struct {
	documents
	match  platformMatcher
	early  bool // of a stream: what is not needed for the layers is not waited for
	seen   map[digest.Digest]*chosen
	layers int // of all images so far

	byConfig map[digest.Digest]*chosen // all manifests of the layout; nil until asked for
}

func newOCIReader(t tree, platform string) (*ociReader, error) {
	match, err := newPlatformMatcher(platform)
	if err != nil {
		return nil, err
	}
	return &ociReader{documents: documents{tree: t}, match: match, seen: map[digest.Digest]*chosen{}}, nil
}

// images returns the images that index.json names, one per name.
func (r *ociReader) images(ctx context.Context) ([]*archived, error) {
	top, err := r.index(ctx)
	if err != nil {
		return nil, err
	}
	var found []*chosen
	var other error
	for _, d := range top {
		m, err := r.resolve(ctx, d, 0)
		if errors.Is(err, errNoImage) {
			other = cmp.Or(other, err)
			continue
		}
		if err != nil {
			return nil, err
		}
		named := *m
		named.ref, named.odd = refOf(d)
		if named.platform == nil {
			named.platform = d.Platform
		}
		found = append(found, &named)
	}
	if len(found) == 0 && other != nil {
		return nil, fmt.Errorf("image archive: %w: %w", other, ErrUnsupported)
	}
	wanted := r.wanted(found)
	if len(wanted) == 0 && len(found) > 0 {
		return nil, r.match.none("index.json", top)
	}
	var images []*archived
	for _, m := range wanted {
		a, err := r.image(ctx, m)
		if err != nil {
			return nil, err
		}
		images = append(images, a)
	}
	if len(images) == 0 {
		return nil, damaged("image archive: index.json names no image")
	}
	return images, nil
}

// index returns the descriptors in index.json.
func (r *ociReader) index(ctx context.Context) ([]ocispec.Descriptor, error) {
	data, err := r.document(ctx, "index.json")
	if err != nil {
		return nil, err
	}
	if err := r.layoutVersion(ctx); err != nil {
		return nil, err
	}
	doc, err := parseOCI("index.json", data)
	if err != nil {
		return nil, err
	}
	if doc.Config != nil || doc.Layers != nil {
		return nil, damaged("image archive: index.json: a manifest where an index belongs")
	}
	if len(doc.Manifests) > maxImages {
		return nil, damaged("image archive: index.json: %d images are too many", len(doc.Manifests))
	}
	return doc.Manifests, nil
}

// layoutVersion looks at the oci-layout file. Some writers leave it out.
func (r *ociReader) layoutVersion(ctx context.Context) error {
	if r.early {
		return nil
	}
	data, err := r.document(ctx, ocispec.ImageLayoutFile)
	if errors.Is(err, errMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	var l ocispec.ImageLayout
	if err := parseDocument(ocispec.ImageLayoutFile, data, &l); err != nil {
		return err
	}
	if l.Version != ocispec.ImageLayoutVersion {
		return unsupported("image archive: OCI layout of version %.40q", l.Version)
	}
	return nil
}

// read returns the checked bytes behind a descriptor.
func (r *ociReader) read(ctx context.Context, d ocispec.Descriptor) ([]byte, string, error) {
	name, err := blobPath(d.Digest)
	if err != nil {
		return nil, "", err
	}
	data, err := r.document(ctx, name)
	if err != nil {
		return nil, name, err
	}
	if int64(len(data)) != d.Size {
		return nil, name, damaged("image archive: %s has %d bytes, its descriptor says %d", name, len(data), d.Size)
	}
	if got := d.Digest.Algorithm().FromBytes(data); got != d.Digest {
		return nil, name, damaged("image archive: %s has the digest %s", name, got)
	}
	return data, name, nil
}

// resolve follows a descriptor to the manifest of an image, through indexes to the best platform.
func (r *ociReader) resolve(ctx context.Context, d ocispec.Descriptor, depth int) (*chosen, error) {
	if m, ok := r.seen[d.Digest]; ok {
		return m, m.err
	}
	m, err := r.follow(ctx, d, depth)
	if err != nil {
		m = &chosen{err: err}
	}
	if ctx.Err() == nil {
		r.seen[d.Digest] = m
	}
	return m, err
}

func (r *ociReader) follow(ctx context.Context, d ocispec.Descriptor, depth int) (*chosen, error) {
	if depth > maxIndexDepth {
		return nil, damaged("image archive: indexes within indexes, more than %d deep", maxIndexDepth)
	}
	if !documentType(d.MediaType) || d.Annotations[annotationDockerRef] != "" {
		return nil, fmt.Errorf("%s: media type %.100q: %w", d.Digest, d.MediaType, errNoImage)
	}
	data, name, err := r.read(ctx, d)
	if err != nil {
		return nil, err
	}
	doc, err := parseOCI(name, data)
	if err != nil {
		return nil, err
	}
	if doc.Manifests != nil {
		return r.choose(ctx, name, doc.Manifests, depth)
	}
	if doc.Config == nil {
		return nil, fmt.Errorf("%s: neither a manifest nor an index: %w", name, errNoImage)
	}
	if t := doc.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != mediaTypeDockerConfig {
		return nil, fmt.Errorf("%s: config of type %.100q: %w", name, t, errNoImage)
	}
	return newChosen(doc, data, d.Platform, ""), nil
}

func documentType(mediaType string) bool {
	switch mediaType {
	case "", ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex, mediaTypeDockerManifest, mediaTypeDockerList:
		return true
	}
	return false
}

// choose returns the manifest of an index that suits the platform best. An index often names manifests,
// of other platforms, that the archive does not have.
func (r *ociReader) choose(ctx context.Context, name string, ds []ocispec.Descriptor, depth int) (*chosen, error) {
	var images []ocispec.Descriptor
	for _, d := range ds {
		if documentType(d.MediaType) && d.Annotations[annotationDockerRef] == "" {
			images = append(images, d)
		}
	}
	var missing error
	for _, d := range r.match.order(images) {
		m, err := r.resolve(ctx, d, depth+1)
		if errors.Is(err, errMissing) {
			missing = err
		}
		if errors.Is(err, errMissing) || errors.Is(err, errNoImage) {
			continue
		}
		if err != nil {
			return nil, err
		}
		found := *m
		if found.platform == nil {
			found.platform = d.Platform
		}
		return &found, nil
	}
	if missing != nil {
		return nil, missing
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%s: an index without images: %w", name, errNoImage)
	}
	return nil, r.match.none(name, images)
}

// wanted drops, of several images of one name or without one, those for other platforms while one of
// them is for the wanted one; all that are for other platforms where the caller asked for one.
func (r *ociReader) wanted(found []*chosen) []*chosen {
	suits := map[string]bool{}
	for _, m := range found {
		if m.platform != nil && r.match.matches(*m.platform) {
			suits[m.ref] = true
		}
	}
	var keep []*chosen
	for _, m := range found {
		if m.platform == nil || r.match.matches(*m.platform) || !suits[m.ref] && !r.match.explicit {
			keep = append(keep, m)
		}
	}
	return keep
}

// image reads the config of a manifest.
func (r *ociReader) image(ctx context.Context, m *chosen) (*archived, error) {
	a := &archived{manifest: m.raw, manifestType: m.mediaType, odd: m.odd}
	for _, d := range m.manifest.Layers {
		if !layerTypes[d.MediaType] {
			return nil, unsupported("image archive: layer %s of media type %.100q", d.Digest, d.MediaType)
		}
		name, err := blobPath(d.Digest)
		if err != nil {
			return nil, err
		}
		if d.Size < 0 {
			return nil, damaged("image archive: layer %s of %d bytes", d.Digest, d.Size)
		}
		a.layers = append(a.layers, archivedLayer{path: name, blob: d.Digest, size: d.Size, mediaType: d.MediaType})
	}
	if m.manifest.Config.Digest.Algorithm() != digest.SHA256 {
		return nil, unsupported("image archive: config digest %.200q", m.manifest.Config.Digest)
	}
	config, name, err := r.read(ctx, *m.manifest.Config)
	if err != nil {
		return nil, err
	}
	if m.ref != "" {
		a.refs = []string{m.ref}
	}
	return a, r.use(a, name, config)
}

// manifestFor returns the manifest in the layout whose config is id; nil where there is none.
func (r *ociReader) manifestFor(ctx context.Context, id digest.Digest) (*chosen, error) {
	if r.byConfig == nil {
		top, err := r.index(ctx)
		if err != nil && !errors.Is(err, errMissing) {
			return nil, err
		}
		r.byConfig = map[digest.Digest]*chosen{}
		visited := map[digest.Digest]bool{}
		for _, d := range top {
			ref, _ := refOf(d)
			if err := r.collect(ctx, d, ref, visited, 0); err != nil {
				return nil, err
			}
		}
	}
	return r.byConfig[id], nil
}

// collect fills byConfig with the manifests behind a descriptor, of all platforms. What the archive does
// not have is passed over.
func (r *ociReader) collect(ctx context.Context, d ocispec.Descriptor, ref string, visited map[digest.Digest]bool, depth int) error {
	if depth > maxIndexDepth || !documentType(d.MediaType) || visited[d.Digest] {
		return nil
	}
	visited[d.Digest] = true
	data, name, err := r.read(ctx, d)
	if errors.Is(err, errMissing) {
		return nil
	}
	if err != nil {
		return err
	}
	doc, err := parseOCI(name, data)
	if err != nil {
		return err
	}
	if doc.Config != nil && r.byConfig[doc.Config.Digest] == nil {
		r.byConfig[doc.Config.Digest] = newChosen(doc, data, d.Platform, ref)
	}
	for _, d := range doc.Manifests {
		if err := r.collect(ctx, d, ref, visited, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func newChosen(doc document, raw []byte, platform *ocispec.Platform, ref string) *chosen {
	c := &chosen{manifest: doc, raw: raw, mediaType: doc.MediaType, platform: platform, ref: ref}
	if c.mediaType == "" {
		c.mediaType = ocispec.MediaTypeImageManifest
	}
	return c
}

// refOf returns the name that a descriptor of index.json gives its image, "" if it gives none that can
// be a reference, and the names that cannot. An id, which some writers put there, is no name.
func refOf(d ocispec.Descriptor) (ref string, odd []string) {
	for _, key := range []string{annotationImageName, ocispec.AnnotationRefName} {
		name := d.Annotations[key]
		if name == "" || digest.Digest(name).Validate() == nil {
			continue
		}
		if _, err := normalize(name); err == nil {
			return name, odd
		}
		odd = append(odd, name)
	}
	return "", odd
}
