package snapshotter

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/layer"
)

// The kinds of documents that this package keeps. Those with two keys begin with a digest of the first, so that what belongs to it
// lies together, whatever the keys are.
const (
	kindSnapshot = "containerd"       // key: the snapshot's; holds its node
	kindChild    = "containerd-child" // digest of the parent's key, key of the child
	kindRef      = "containerd-ref"   // digest of the reference, key of a snapshot that is labelled with it
)

// What clients may ask this package to keep.
const (
	maxKey = 4096 // bytes

	// maxLabels is the most bytes of all keys and values of a snapshot's labels. A list has a hundred snapshots in each message, which together must stay below the
	// 4 MiB that a gRPC client takes: else nobody could list them any more, and containerd could not collect its garbage.
	maxLabels = 32 << 10
)

// attrKey is what nodes of this package tell of the key that they were made for.
const attrKey = "containerd.key"

// record is the document of a snapshot.
type record struct {
	Kind    string            `json:"kind"` // "active", "view" or "committed"
	Parent  string            `json:"parent,omitempty"`
	Labels  map[string]string `json:"labels,omitempty"`
	Created time.Time         `json:"created"`
	Updated time.Time         `json:"updated"`
	Staged  bool              `json:"staged,omitempty"` // an active one that stands for a layer that is there

	key  string
	node string // name
}

func (r record) kind() snapshots.Kind { return snapshots.ParseKind(r.Kind) }

// shared tells whether the node is a layer that has a life of its own, which the snapshot only shows.
func (r record) shared() bool { return r.Staged || r.kind() == snapshots.KindView && r.Parent != "" }

func (r record) info() snapshots.Info {
	return snapshots.Info{Kind: r.kind(), Name: r.key, Parent: r.Parent, Labels: r.Labels, Created: r.Created, Updated: r.Updated}
}

// documents is what this package needs of a *layer.DocTx.
type documents interface {
	Get(kind, key string) (layer.Document, error)
	List(kind string) ([]layer.Document, error)
	ListWith(kind, prefix string) ([]layer.Document, error)
	Put(d layer.Document) error
	Delete(kind, key string) error
	Node(name string) (layer.Node, error)
}

// get returns a snapshot, or ErrNotFound.
func get(tx documents, key string) (record, error) {
	d, err := document(tx, key)
	if err != nil {
		return record{}, err
	}
	return decode(d)
}

// document returns a snapshot as it is kept, or ErrNotFound.
func document(tx documents, key string) (layer.Document, error) {
	d, err := tx.Get(kindSnapshot, key)
	if errors.Is(err, layer.ErrNotFound) {
		err = fmt.Errorf("snapshot %q: %w", key, errdefs.ErrNotFound)
	}
	return d, err
}

// same is ErrNotFound where a snapshot is not there any more as it was.
func same(tx documents, r record) error {
	now, err := get(tx, r.key)
	if err == nil && r.stale(now) != nil {
		err = fmt.Errorf("snapshot %q was replaced: %w", r.key, errdefs.ErrNotFound)
	}
	return err
}

func decode(d layer.Document) (record, error) {
	r := record{key: d.Key}
	if err := json.Unmarshal(d.Data, &r); err != nil {
		return r, fmt.Errorf("record of snapshot %q: %w: %w", d.Key, err, layer.ErrDamaged)
	}
	if len(d.Layers) != 1 || r.kind() == snapshots.KindUnknown {
		return r, fmt.Errorf("record of snapshot %q has kind %q and %d nodes: %w", d.Key, r.Kind, len(d.Layers), layer.ErrDamaged)
	}
	r.node = d.Layers[0]
	return r, nil
}

// free is ErrAlreadyExists where a key is taken.
func free(tx documents, key string) error {
	_, err := tx.Get(kindSnapshot, key)
	if err == nil {
		return fmt.Errorf("snapshot %q: %w", key, errdefs.ErrAlreadyExists)
	}
	if errors.Is(err, layer.ErrNotFound) {
		return nil
	}
	return err
}

// put adds or replaces a snapshot and what leads to it.
func put(tx documents, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("record of snapshot %q: %w", r.key, err)
	}
	if err := tx.Put(layer.Document{Kind: kindSnapshot, Key: r.key, Layers: []string{r.node}, Data: data}); err != nil {
		return err
	}
	for _, at := range r.index() {
		if err := tx.Put(layer.Document{Kind: at.kind, Key: at.key, Data: json.RawMessage("{}")}); err != nil {
			return err
		}
	}
	return nil
}

// remove forgets a snapshot and what leads to it.
func remove(tx documents, r record) error {
	err := tx.Delete(kindSnapshot, r.key)
	for _, at := range r.index() {
		err = errors.Join(err, tx.Delete(at.kind, at.key))
	}
	return err
}

// place is where a document leads to a snapshot.
type place struct{ kind, key string }

func (r record) index() []place {
	var places []place
	if r.Parent != "" {
		places = append(places, place{kindChild, prefixOf(r.Parent) + r.key})
	}
	if ref := r.Labels[snapshots.LabelSnapshotRef]; ref != "" {
		places = append(places, place{kindRef, prefixOf(ref) + r.key})
	}
	return places
}

// prefixLen is how long what prefixOf returns is.
const prefixLen = 2*16 + 1

func prefixOf(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:16]) + " "
}

// leads returns the keys to which the documents of a kind lead from a key.
func leads(tx documents, kind, from string) ([]string, error) {
	prefix := prefixOf(from)
	docs, err := tx.ListWith(kind, prefix)
	if err != nil {
		return nil, err
	}
	keys := make([]string, len(docs))
	for i, d := range docs {
		keys[i] = strings.TrimPrefix(d.Key, prefix)
	}
	return keys, nil
}

// withRef returns the snapshots that are labelled with a reference.
func withRef(tx documents, ref string) ([]record, error) {
	keys, err := leads(tx, kindRef, ref)
	if err != nil {
		return nil, err
	}
	var found []record
	for _, key := range keys {
		r, err := get(tx, key)
		if errors.Is(err, layer.ErrDamaged) {
			continue // what its label was nobody knows
		}
		if err != nil {
			return nil, err
		}
		if r.Labels[snapshots.LabelSnapshotRef] == ref {
			found = append(found, r)
		}
	}
	return found, nil
}

// childless is ErrFailedPrecondition where a snapshot is a parent.
func childless(tx documents, key string) error {
	children, err := leads(tx, kindChild, key)
	if err == nil && len(children) > 0 {
		err = fmt.Errorf("cannot remove snapshot %q, the parent of %q: %w", key, children[0], errdefs.ErrFailedPrecondition)
	}
	return err
}

// checkKey refuses keys that cannot be kept as they are.
func checkKey(what, key string) error {
	switch {
	case key == "":
		return fmt.Errorf("%s of a snapshot is empty: %w", what, errdefs.ErrInvalidArgument)
	case len(key) > maxKey:
		return fmt.Errorf("%s of a snapshot has %d bytes, at most %d: %w", what, len(key), maxKey, errdefs.ErrInvalidArgument)
	case !utf8.ValidString(key) || strings.ContainsRune(key, 0):
		return fmt.Errorf("%s %q of a snapshot is no text: %w", what, key, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	size := 0
	for k, v := range labels {
		size += len(k) + len(v)
		if !utf8.ValidString(k) || !utf8.ValidString(v) {
			return fmt.Errorf("label %q=%q is no text: %w", k, v, errdefs.ErrInvalidArgument)
		}
	}
	if size > maxLabels {
		return fmt.Errorf("labels have %d bytes, at most %d: %w", size, maxLabels, errdefs.ErrInvalidArgument)
	}
	return nil
}
