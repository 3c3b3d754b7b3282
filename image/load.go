package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
)

var (
	pointChecked  = fault.New("image.load.checked")
	pointMade     = fault.New("image.load.layer-made")
	pointAllMade  = fault.New("image.load.all-made")
	pointRecorded = fault.New("image.load.recorded")
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

	// Odd, when set, is called with each name that the archive gives an image and that is no reference: the
	// image is loaded without it. A name may have any bytes and any length.
	Odd func(name string)
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
// are there when it returns nil. An image or a layer that is there already is used. A reference that
// another image had moves to the new one.
//
// After an error no image is there that was not before. Of an archive that is damaged, invalid or not
// supported, the layers that were made are removed again. Where something else came between, such as the
// end of ctx or a full pool, those that are whole stay, and the next load of the archive goes on from
// there.
func Load(ctx context.Context, s *layer.Store, source string, o LoadOptions) ([]Loaded, error) {
	return load(ctx, storeNodes{s}, source, o)
}

func load(ctx context.Context, n nodes, source string, o LoadOptions) ([]Loaded, error) {
	if _, err := newPlatformMatcher(o.Platform); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t, err := openSource(ctx, source, o)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	l := newLoader(n, t, newReporter(o.Progress))
	loaded, err := l.load(ctx, o.Platform)
	if err != nil {
		return nil, l.undo(ctx, err)
	}
	if o.Odd != nil {
		for _, a := range l.images {
			for _, name := range a.odd {
				o.Odd(name)
			}
		}
	}
	return loaded, pointRecorded.Hit()
}

func (l *loader) load(ctx context.Context, platform string) ([]Loaded, error) {
	if t, ok := l.tree.(*streamTree); ok {
		if err := l.begin(ctx, t, platform); err != nil {
			return nil, err
		}
	}
	images, err := readArchive(ctx, l.tree, platform)
	if err != nil {
		return nil, err
	}
	l.images = merged(images)
	if err := l.check(ctx); err != nil {
		return nil, err
	}
	l.report.plan(l.images)
	if err := pointChecked.Hit(); err != nil {
		return nil, err
	}
	return loadedOf(images), l.run(ctx)
}

// begin makes layers of a stream while it comes in, as far as its order allows, and reads it to the end.
func (l *loader) begin(ctx context.Context, t *streamTree, platform string) error {
	images, err := foresee(ctx, t, platform)
	if err == nil {
		l.images = merged(images)
		l.report.plan(l.images)
		l.uses = usesOf(l.images)
		err = l.makeAll(ctx)
		l.uses = nil
		// What is not there now may not be needed in the end, and what was removed can be made again.
		if err != nil && !errors.Is(err, errMissing) && !errors.Is(err, errVanished) {
			return err
		}
	}
	return t.whole(ctx)
}

// uses counts the layers that are still to be made, by their file, and by what is in it: one file can have
// several names, by links that have not come yet.
type uses struct {
	files    map[string]int
	contents map[digest.Digest]int
}

func usesOf(images []*archived) *uses {
	u, seen := &uses{map[string]int{}, map[digest.Digest]int{}}, map[string]bool{}
	for _, a := range images {
		for _, lay := range a.layers {
			if !seen[lay.name] {
				seen[lay.name] = true
				u.files[lay.path]++
				u.contents[lay.diffID]++
			}
		}
	}
	return u
}

// done takes note that a layer is there, and reports whether no other is made of its file.
func (u *uses) done(lay *archivedLayer) bool {
	u.files[lay.path]--
	u.contents[lay.diffID]--
	return u.files[lay.path] == 0 && u.contents[lay.diffID] == 0
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
		all[i].odd = append(slices.Clone(all[i].odd), a.odd...)
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
	tree    tree
	images  []*archived
	report  *reporter
	made    []string        // names of the layers that this load made
	settled map[string]bool // layers that were told of as done or existing

	// What is known of layers, by name: attributes of those that were there, what was found out
	// reading, and sizes of tars from the records of images, nil until asked for.
	attrs    map[string]map[string]string
	found    map[string]facts
	recorded map[string]int64

	uses *uses // nil where all files stay
}

func newLoader(n nodes, t tree, r *reporter) *loader {
	return &loader{
		nodes: n, tree: t, report: r,
		settled: map[string]bool{}, attrs: map[string]map[string]string{}, found: map[string]facts{},
	}
}

// errVanished says that a layer that was there is gone: somebody removes images at the same time.
var errVanished = errors.New("a layer was removed meanwhile")

// run makes the layers and records the images. Layers that exist already, or that another process makes
// first, can be removed until the images hold them; then it makes them again.
func (l *loader) run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		err := l.runOnce(ctx)
		if !errors.Is(err, errVanished) || attempt == maxAttempts {
			return err
		}
	}
}

func (l *loader) runOnce(ctx context.Context) error {
	if err := l.makeAll(ctx); err != nil {
		return err
	}
	if err := pointAllMade.Hit(); err != nil {
		return err
	}
	if err := l.complete(ctx); err != nil {
		return err
	}
	if err := l.removeSurplus(ctx); err != nil {
		return err
	}
	return l.record(ctx)
}

// removeSurplus removes layers that a stream promised at first and that no image of it has.
func (l *loader) removeSurplus(ctx context.Context) error {
	wanted := map[string]bool{}
	for _, a := range l.images {
		for _, lay := range a.layers {
			wanted[lay.name] = true
		}
	}
	kept, surplus := []string{}, []string{}
	for _, name := range l.made {
		if wanted[name] {
			kept = append(kept, name)
		} else {
			surplus = append(surplus, name)
		}
	}
	l.made = kept
	return l.remove(ctx, surplus)
}

// remove removes layers that this load made, the last one first. Those that somebody uses stay.
func (l *loader) remove(ctx context.Context, names []string) error {
	var failed error
	for _, name := range slices.Backward(names) {
		if err := l.Remove(ctx, name); err != nil && !errors.Is(err, ErrNotFound) && !errors.Is(err, ErrBusy) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// undo removes the layers that this load made where its archive is to blame for the failure.
func (l *loader) undo(ctx context.Context, cause error) error {
	if ctx.Err() != nil || errors.Is(cause, ErrNoSpace) ||
		!errors.Is(cause, ErrDamaged) && !errors.Is(cause, ErrUnsupported) && !errors.Is(cause, ErrInvalid) {
		return cause
	}
	if err := l.remove(context.WithoutCancel(ctx), l.made); err != nil {
		return fmt.Errorf("%w (and undoing it: %w)", cause, err)
	}
	return cause
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
		r.Layers = append(r.Layers, layerRecord{DiffID: lay.diffID, Digest: lay.blob, MediaType: lay.mediaType, Packed: lay.size, Size: lay.tar})
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
	return putRef(tx, key, refRecord{Spelled: ref, ID: id, Set: now})
}
