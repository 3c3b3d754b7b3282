package image

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/layer"
)

// List makes the fake what looks at who descends from whom.
func (s *fakeStore) List(context.Context) ([]layer.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []layer.Info
	for name, l := range s.layers {
		i := layer.Info{Node: l.node, State: layer.StateInactive}
		if s.busy[name] {
			i.State = layer.StateMounted
		}
		all = append(all, i)
	}
	return all, nil
}

// node puts a node into the store, without content.
func (s *fakeStore) node(name string, kind layer.Kind, parent string) {
	s.layers[name] = &fakeLayer{node: layer.Node{Name: name, Kind: kind, Parent: parent}}
}

// recorded is an image that is put into the store as its record, with layers that a test has put there.
type recorded struct {
	refs    []string
	layers  []string
	created time.Time
	labels  map[string]string
	history []ocispec.History
}

// put records the image, and returns its id.
func (r recorded) put(t *testing.T, s *fakeStore) string {
	t.Helper()
	c := ocispec.Image{History: r.history, Author: strings.Join(append(r.refs, r.layers...), " ")}
	c.Config.Labels = r.labels
	config := must(json.Marshal(c))
	id := digest.FromBytes(config).String()
	rec := imageRecord{Config: config, Created: r.created}
	for k := range r.layers {
		rec.Layers = append(rec.Layers, layerRecord{Size: int64(100 + k)})
	}
	err := s.UpdateDocuments(t.Context(), func(tx documentTx) error {
		for _, ref := range r.refs {
			if err := putRef(tx, must(normalize(ref)), refRecord{Spelled: ref, ID: id}); err != nil {
				return err
			}
		}
		return tx.Put(must(newDocument(kindImage, id, r.layers, rec)))
	})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// called lists images as a test spells them: by reference, or "-".
func called(images []Image) string {
	var names []string
	for _, i := range images {
		if i.Ref == "" {
			i.Ref = "-"
		}
		names = append(names, i.Ref)
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}
