package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// Image is an image of the pool.
type Image struct {
	Ref          string    // the reference it was asked for or listed under, as the archive spelled it; "" for none
	ID           string    // "sha256:…": the digest of Config
	Refs         []string  // all its references, sorted
	Layers       []Layer   // the lowest first
	Size         int64     // bytes of all layer tars, unpacked
	Platform     string    // "linux/amd64"; "" if the config does not say
	Created      time.Time // as the config says; zero if it does not
	Loaded       time.Time // for the first time
	Config       []byte    // exact bytes
	Manifest     []byte    // exact bytes, of the media type below
	ManifestType string
}

// Layer is a layer of an image.
type Layer struct {
	Name      string // of the node
	DiffID    string
	Digest    string // of the layer as it came, packed or not
	MediaType string
	Packed    int64 // bytes as it came
	Size      int64 // bytes of its tar
}

// TopLayer returns the name of the node to make snapshots of; "" for an image without layers.
func (i Image) TopLayer() string {
	if len(i.Layers) == 0 {
		return ""
	}
	return i.Layers[len(i.Layers)-1].Name
}

// List returns the images, once for each reference and once for each image without one, by reference.
// Concurrent loads and removals are seen or not, but no image is shown in halves.
func List(ctx context.Context, s *layer.Store) ([]Image, error) { return list(ctx, storeNodes{s}) }

// Get returns the image that a reference, an id or the beginning of one (of at least four digits) means.
// References are tried first, and spelled as Docker's users do: "app", "app:latest" and
// "docker.io/library/app:latest" are the same. ErrNotFound; ErrInvalid for what can be neither and for
// the beginning of several ids.
func Get(ctx context.Context, s *layer.Store, name string) (Image, error) {
	return get(ctx, storeNodes{s}, name)
}

// Resolve returns the node to make snapshots of the image that name means, as in Get; "" for an image
// without layers.
func Resolve(ctx context.Context, s *layer.Store, name string) (string, error) {
	return resolve(ctx, storeNodes{s}, name)
}

func list(ctx context.Context, n nodes) ([]Image, error) {
	images, err := n.Documents(ctx, kindImage)
	if err != nil {
		return nil, err
	}
	refs, err := allRefs(ctx, n)
	if err != nil {
		return nil, err
	}
	byID := map[string]Image{}
	for _, d := range images {
		if byID[d.Key], err = newImage(d, refs); err != nil {
			return nil, err
		}
	}
	var all []Image
	listed := map[string]bool{}
	for _, r := range refs {
		i, ok := byID[r.ID]
		if !ok { // loaded since
			if i, err = imageByID(ctx, n, r.ID, refs); errors.Is(err, ErrNotFound) {
				continue // and removed since
			} else if err != nil {
				return nil, err
			}
		}
		i.Ref = r.Spelled
		listed[r.ID] = true
		all = append(all, i)
	}
	for _, d := range images {
		if listed[d.Key] {
			continue
		}
		// Has it no reference, or was it removed since?
		if _, err := n.Document(ctx, kindImage, d.Key); errors.Is(err, ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		all = append(all, byID[d.Key])
	}
	slices.SortStableFunc(all, func(a, b Image) int { return cmp.Or(strings.Compare(a.Ref, b.Ref), strings.Compare(a.ID, b.ID)) })
	return all, nil
}

// keyedRef is a reference's key and what it says.
type keyedRef struct {
	key string
	refRecord
}

func allRefs(ctx context.Context, n nodes) ([]keyedRef, error) {
	docs, err := n.Documents(ctx, kindRef)
	if err != nil {
		return nil, err
	}
	return decodeRefs(docs), nil
}

// decodeRefs reads references. One that cannot be read leads nowhere, and keeps nobody from the others; a check of the pool tells of it.
func decodeRefs(docs []layer.Document) []keyedRef {
	refs := make([]keyedRef, len(docs))
	for i, d := range docs {
		refs[i].key = d.Key
		if err := decodeDocument(d, &refs[i].refRecord); err != nil {
			refs[i].refRecord = refRecord{Spelled: d.Key}
		}
	}
	return refs
}

func newImage(d layer.Document, refs []keyedRef) (Image, error) {
	r, err := decodeImage(d)
	if err != nil {
		return Image{}, err
	}
	i := Image{
		ID: d.Key, Platform: r.Platform, Created: r.Created, Loaded: r.Loaded,
		Config: r.Config, Manifest: r.Manifest, ManifestType: r.ManifestType,
	}
	for k, l := range r.Layers {
		i.Layers = append(i.Layers, Layer{
			Name: d.Layers[k], DiffID: l.DiffID.String(), Digest: l.Digest.String(), MediaType: l.MediaType, Packed: l.Packed, Size: l.Size,
		})
		i.Size += l.Size
	}
	for _, ref := range refs {
		if ref.ID == i.ID {
			i.Refs = append(i.Refs, ref.Spelled)
		}
	}
	slices.Sort(i.Refs)
	return i, nil
}

func imageByID(ctx context.Context, n nodes, id string, refs []keyedRef) (Image, error) {
	d, err := n.Document(ctx, kindImage, id)
	if err != nil {
		return Image{}, err
	}
	return newImage(d, refs)
}

func get(ctx context.Context, n nodes, name string) (Image, error) {
	id, ref, err := find(ctx, n, name)
	if err != nil {
		return Image{}, err
	}
	refs, err := allRefs(ctx, n)
	if err != nil {
		return Image{}, err
	}
	i, err := imageByID(ctx, n, id, refs)
	if err != nil {
		return Image{}, fmt.Errorf("image %.300q: %w", name, err)
	}
	i.Ref = ref
	return i, nil
}

// resolve looks at the named reference and its image only, however many there are.
func resolve(ctx context.Context, n nodes, name string) (string, error) {
	id, _, err := find(ctx, n, name)
	if err != nil {
		return "", err
	}
	i, err := imageByID(ctx, n, id, nil)
	if err != nil {
		return "", fmt.Errorf("image %.300q: %w", name, err)
	}
	return i.TopLayer(), nil
}

// find returns the id that name means, and the reference as the archive spelled it where name is one.
func find(ctx context.Context, n nodes, name string) (id, ref string, err error) {
	named, refErr := parse(name)
	if refErr == nil {
		if id, ref, err = findRef(ctx, n, named); err == nil || !errors.Is(err, ErrNotFound) {
			return id, ref, err
		}
	}
	prefix := idPrefixOf(name)
	if prefix == "" && refErr != nil {
		return "", "", refErr
	}
	if prefix == "" {
		return "", "", fmt.Errorf("image %.300q: %w", name, ErrNotFound)
	}
	id, err = findID(ctx, n, prefix)
	return id, "", err
}

func findRef(ctx context.Context, n nodes, named reference.Named) (id, ref string, err error) {
	d, err := n.Document(ctx, kindRef, named.String())
	if err == nil {
		var r refRecord
		if err := decodeDocument(d, &r); err != nil {
			return "", d.Key, err
		}
		return r.ID, r.Spelled, nil
	}
	digested, ok := named.(reference.Digested)
	if !ok || !errors.Is(err, ErrNotFound) {
		return "", "", err
	}
	return findDigest(ctx, n, named, digested.Digest())
}

// findDigest finds what name[:tag]@digest means: the image of that name whose manifest, or id, has the
// digest.
func findDigest(ctx context.Context, n nodes, named reference.Named, d digest.Digest) (id, ref string, err error) {
	refs, err := allRefs(ctx, n)
	if err != nil {
		return "", "", err
	}
	for _, r := range refs {
		if !sameName(r.key, named) {
			continue
		}
		i, err := imageByID(ctx, n, r.ID, nil)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return "", "", err
		}
		if err == nil && (d.Algorithm().FromBytes(i.Manifest) == d || i.ID == d.String()) {
			return r.ID, r.Spelled, nil
		}
	}
	return "", "", fmt.Errorf("image %q: %w", reference.FamiliarString(named), ErrNotFound)
}

// sameName reports whether a key has the name, and the tag if there is one, of a reference with a digest.
func sameName(key string, named reference.Named) bool {
	has, err := reference.ParseNormalizedNamed(key)
	if err != nil || has.Name() != named.Name() {
		return false
	}
	tagged, ok := named.(reference.Tagged)
	if !ok {
		return true
	}
	hasTag, ok := has.(reference.Tagged)
	return ok && hasTag.Tag() == tagged.Tag()
}

func findID(ctx context.Context, n nodes, prefix string) (string, error) {
	docs, err := n.Documents(ctx, kindImage)
	if err != nil {
		return "", err
	}
	id := ""
	for _, d := range docs {
		if !strings.HasPrefix(d.Key, prefix) {
			continue
		}
		if id != "" {
			return "", errs.WithHint(fmt.Errorf("image %q: several ids begin so: %w", prefix, ErrInvalid), "give more digits of the id")
		}
		id = d.Key
	}
	if id == "" {
		return "", fmt.Errorf("image %q: %w", prefix, ErrNotFound)
	}
	return id, nil
}
