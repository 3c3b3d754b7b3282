package image

import (
	"errors"
	"slices"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/layer"
)

func TestHistory(t *testing.T) {
	created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.FixedZone("", 3600))
	add, env, run := ocispec.History{Created: &created, CreatedBy: "ADD rootfs"}, ocispec.History{CreatedBy: "ENV a=b", EmptyLayer: true, Comment: "buildkit"}, ocispec.History{CreatedBy: "RUN it", Author: "anna"}
	for _, c := range []struct {
		name    string
		history []ocispec.History
		want    []Step
	}{
		{"fits", []ocispec.History{add, env, run}, []Step{
			{Layer: "l2", Size: 101, CreatedBy: "RUN it", Author: "anna"},
			{CreatedBy: "ENV a=b", Comment: "buildkit", Empty: true},
			{Layer: "l1", Size: 100, CreatedBy: "ADD rootfs", Created: created.UTC()},
		}},
		{"none", nil, []Step{{Layer: "l2", Size: 101}, {Layer: "l1", Size: 100}}},
		{"too short", []ocispec.History{add, env}, []Step{
			{Layer: "l2", Size: 101}, {Layer: "l1", Size: 100},
			{CreatedBy: "ENV a=b", Comment: "buildkit", Empty: true},
			{CreatedBy: "ADD rootfs", Created: created.UTC()},
		}},
		{"too long", []ocispec.History{add, run, run}, []Step{
			{Layer: "l2", Size: 101}, {Layer: "l1", Size: 100},
			{CreatedBy: "RUN it", Author: "anna"}, {CreatedBy: "RUN it", Author: "anna"},
			{CreatedBy: "ADD rootfs", Created: created.UTC()},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newFakeStore(t)
			s.node("l1", layer.KindLayer, "")
			s.node("l2", layer.KindLayer, "l1")
			recorded{refs: []string{"app"}, layers: []string{"l1", "l2"}, history: c.history}.put(t, s)
			got, err := history(t.Context(), s, "app")
			if err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%+v (%v)\nwant %+v", got, err, c.want)
			}
		})
	}
	s := newFakeStore(t)
	recorded{refs: []string{"bare"}, history: []ocispec.History{env}}.put(t, s)
	if got, err := history(t.Context(), s, "bare"); err != nil || len(got) != 1 || got[0].CreatedBy != "ENV a=b" {
		t.Errorf("an image without layers: %+v (%v)", got, err)
	}
	if _, err := history(t.Context(), s, "nothing"); !errors.Is(err, ErrNotFound) {
		t.Errorf("no image: %v", err)
	}
}
