package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
)

var (
	pointVerified = fault.New("image.load.verified")
	pointMade     = fault.New("image.load.layer-made")
	pointAllMade  = fault.New("image.load.all-made")
	pointRecorded = fault.New("image.load.recorded")
)

// What a layer node that came with an image has as attributes.
const (
	attrChainID   = "image.chainID"
	attrDiffID    = "image.diffID"
	attrDigest    = "image.digest" // of the layer as it came: packed or not
	attrPacked    = "image.packedSize"
	attrMediaType = "image.mediaType"
	attrPosition  = "image.position" // in the chain, 0 is the lowest
)

// maxAttempts bounds how often a load starts again because somebody removed layers under it.
const maxAttempts = 10

// LoadOptions says how Load works. The zero value loads a file or a directory.
type LoadOptions struct {
	Input    io.Reader // what the source "-" reads
	SpoolDir string    // where streams and compressed archives are unpacked; "" is the system's temporary directory
	Platform string    // os/arch[/variant] to take out of indexes; "" is what the program runs on

	// Progress, when set, is called now and then, never twice at once. It must be quick.
	Progress func(Event)
}

// Loaded is a reference that Load has set, or an image without one.
type Loaded struct {
	Ref string // as the archive spells it; "" for none
	ID  string // of the image: "sha256:…"
}

// String returns what to call the image: the reference, or the id where there is none.
func (l Loaded) String() string {
	if l.Ref == "" {
		return l.ID
	}
	return l.Ref
}

// Load loads all images of an archive: a file, a directory, or "-" for LoadOptions.Input. All of them
// are there when it returns nil; after an error nothing that it made is. An image or a layer that is
// there already is used. A reference that another image had moves to the new one.
func Load(ctx context.Context, s *layer.Store, source string, o LoadOptions) ([]Loaded, error) {
	return load(ctx, storeNodes{s}, source, o)
}

func load(ctx context.Context, n nodes, source string, o LoadOptions) ([]Loaded, error) {
	t, err := openSource(ctx, source, o)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	images, err := readArchive(ctx, t, o.Platform)
	if err != nil {
		return nil, err
	}
	l := &loader{nodes: n, tree: t, images: merged(images), report: newReporter(o.Progress)}
	l.report.plan(l.images)
	if err := l.verify(ctx); err != nil {
		return nil, err
	}
	if err := pointVerified.Hit(); err != nil {
		return nil, err
	}
	if err := l.run(ctx); err != nil {
		return nil, l.undo(ctx, err)
	}
	return loadedOf(images), pointRecorded.Hit()
}

// merged joins the images of one id, which an archive may name more than once.
func merged(images []*archived) []*archived {
	var all []*archived
	for _, a := range images {
		i := slices.IndexFunc(all, func(b *archived) bool { return b.id == a.id })
		if i < 0 {
			first := *a
			all = append(all, &first)
			continue
		}
		all[i].refs = append(slices.Clone(all[i].refs), a.refs...)
	}
	return all
}

// loadedOf lists what the images of an archive are called, in its order, each name once.
func loadedOf(images []*archived) []Loaded {
	var all []Loaded
	add := func(l Loaded) {
		if !slices.Contains(all, l) {
			all = append(all, l)
		}
	}
	for _, a := range images {
		for _, ref := range a.refs {
			add(Loaded{ref, a.id.String()})
		}
		if len(a.refs) == 0 {
			add(Loaded{"", a.id.String()})
		}
	}
	return all
}

// loader is one run of Load.
type loader struct {
	nodes
	tree   tree
	images []*archived
	sizes  map[string]int64 // tar bytes of layers, by name
	made   []string         // names of the layers that this load made
	report *reporter
}

// errVanished says that a layer that was there is gone: somebody removes images at the same time.
var errVanished = errors.New("a layer was removed meanwhile")

// run makes the layers and records the images. Layers that exist already, or that another process makes
// first, can be removed until the images hold them; then it makes them again.
func (l *loader) run(ctx context.Context) error {
	if err := l.knownSizes(ctx); err != nil {
		return err
	}
	for attempt := 1; ; attempt++ {
		err := l.makeAll(ctx)
		if err == nil {
			err = l.record(ctx)
		}
		if !errors.Is(err, errVanished) || attempt == maxAttempts {
			return err
		}
	}
}

func (l *loader) makeAll(ctx context.Context) error {
	for _, a := range l.images {
		for i := range a.layers {
			if err := l.ensure(ctx, a, i); err != nil {
				return err
			}
		}
	}
	return pointAllMade.Hit()
}

// ensure makes the i-th layer of an image unless it is there.
func (l *loader) ensure(ctx context.Context, a *archived, i int) error {
	lay := &a.layers[i]
	parent := ""
	if i > 0 {
		parent = a.layers[i-1].name
	}
	for range maxAttempts {
		n, err := l.Get(ctx, lay.name)
		if err == nil {
			return l.useExisting(ctx, lay, n)
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		var fillErr error
		_, err = l.CreateLayer(ctx, lay.name, layer.LayerOptions{Parent: parent, Attrs: l.attrs(lay, i)}, func(ctx context.Context, w layerWriter) error {
			fillErr = l.fill(ctx, w, lay)
			return fillErr
		})
		switch {
		case err == nil:
			l.made = append(l.made, lay.name)
			l.report.event(Event{Stage: StageDone, Layer: lay.name, Done: l.sizes[lay.name], Total: l.sizes[lay.name]})
			return pointMade.Hit()
		case fillErr != nil:
			return err
		case errors.Is(err, ErrNotFound):
			return fmt.Errorf("%w: %w", err, errVanished)
		case !errors.Is(err, ErrExists):
			return err
		}
	}
	return fmt.Errorf("layer %q: %w: %w", lay.name, errVanished, ErrBusy)
}

func (l *loader) attrs(lay *archivedLayer, position int) map[string]string {
	return map[string]string{
		attrChainID:   chainOf(lay.name),
		attrDiffID:    lay.diffID.String(),
		attrDigest:    lay.blob.String(),
		attrPacked:    strconv.FormatInt(lay.size, 10),
		attrMediaType: lay.mediaType,
		attrPosition:  strconv.Itoa(position),
	}
}

// useExisting checks that a node of a layer's name is that layer: names can be given by users too.
func (l *loader) useExisting(ctx context.Context, lay *archivedLayer, n layer.Node) error {
	if n.Kind != layer.KindLayer || n.Attrs[attrChainID] != chainOf(lay.name) {
		err := fmt.Errorf("layer %q: a %s of that name is not from an image: %w", lay.name, n.Kind, ErrExists)
		return errs.WithHint(err, "rename it, then load again")
	}
	l.report.event(Event{Stage: StageExists, Layer: lay.name})
	if _, ok := l.sizes[lay.name]; ok {
		return nil
	}
	size, err := l.measure(ctx, lay)
	l.sizes[lay.name] = size
	return err
}

// knownSizes collects the sizes of the layers that recorded images have.
func (l *loader) knownSizes(ctx context.Context) error {
	l.sizes = map[string]int64{}
	docs, err := l.Documents(ctx, kindImage)
	if err != nil {
		return err
	}
	for _, d := range docs {
		r, err := decodeImage(d)
		if err != nil {
			return err
		}
		for i, name := range d.Layers {
			l.sizes[name] = r.Layers[i].Size
		}
	}
	return nil
}

// record writes the images and their references in one transaction.
func (l *loader) record(ctx context.Context) error {
	now := time.Now().UTC()
	return l.UpdateDocuments(ctx, func(tx documentTx) error {
		for _, a := range l.images {
			if err := l.recordImage(tx, a, now); err != nil {
				return err
			}
			for _, ref := range a.refs {
				if err := recordRef(tx, ref, a.id.String(), now); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

func (l *loader) recordImage(tx documentTx, a *archived, now time.Time) error {
	r := imageRecord{
		Config: a.config, Manifest: a.manifest, ManifestType: a.manifestType, Platform: a.platform, Created: a.created, Loaded: now,
	}
	var names []string
	for _, lay := range a.layers {
		names = append(names, lay.name)
		r.Layers = append(r.Layers, layerRecord{DiffID: lay.diffID, Digest: lay.blob, MediaType: lay.mediaType, Packed: lay.size, Size: l.sizes[lay.name]})
	}
	if old, err := tx.Get(kindImage, a.id.String()); err == nil {
		was, err := decodeImage(old)
		if err != nil {
			return err
		}
		r.Loaded = was.Loaded
		if a.manifestType == mediaTypeDockerEntry && was.ManifestType != mediaTypeDockerEntry {
			r.Manifest, r.ManifestType, r.Layers = was.Manifest, was.ManifestType, was.Layers
		}
	} else if !errors.Is(err, ErrNotFound) {
		return err
	}
	d, err := newDocument(kindImage, a.id.String(), names, r)
	if err != nil {
		return err
	}
	if err := tx.Put(d); errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w: %w", err, errVanished)
	} else if err != nil {
		return err
	}
	return nil
}

func recordRef(tx documentTx, ref, id string, now time.Time) error {
	key, err := normalize(ref)
	if err != nil {
		return err
	}
	d, err := newDocument(kindRef, key, nil, refRecord{Spelled: ref, ID: id, Set: now})
	if err != nil {
		return err
	}
	return tx.Put(d)
}

// undo removes the layers that this load made and nobody uses yet, the last one first.
func (l *loader) undo(ctx context.Context, cause error) error {
	ctx = context.WithoutCancel(ctx)
	for _, name := range slices.Backward(l.made) {
		if err := l.Remove(ctx, name); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBusy) {
			cause = fmt.Errorf("%w (and undoing it: %w)", cause, err)
		}
	}
	return cause
}
