package image

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/layer"
)

// Step is a step of an image's making, or a layer of which nobody says how it was made.
type Step struct {
	Layer     string    // name of the node; "" where the step left none, or where it is not known which
	Size      int64     // bytes of the layer's tar
	Created   time.Time // zero if the config does not say
	CreatedBy string
	Author    string
	Comment   string
	Empty     bool // the step left no layer
}

// History returns how the image that name means, as in Get, was made, the newest step first, as its
// config says. Where that counts another number of layers than there are, nothing tells which belongs to which:
// then the layers come first, and after them the steps, without layers.
func History(ctx context.Context, s *layer.Store, name string) ([]Step, error) {
	return history(ctx, storeNodes{s}, name)
}

func history(ctx context.Context, n nodes, name string) ([]Step, error) {
	i, err := get(ctx, n, name)
	if err != nil {
		return nil, err
	}
	var config struct {
		History []ocispec.History `json:"history"`
	}
	if err := json.Unmarshal(i.Config, &config); err != nil {
		return nil, damaged("image %s: config: %v", i.ID, err)
	}
	steps := stepsOf(config.History, i.Layers)
	slices.Reverse(steps)
	return steps, nil
}

// stepsOf joins a config's history with the layers, both from the lowest up.
func stepsOf(history []ocispec.History, layers []Layer) []Step {
	filled := 0
	steps := make([]Step, len(history), len(history)+len(layers))
	for k, h := range history {
		steps[k] = Step{CreatedBy: h.CreatedBy, Author: h.Author, Comment: h.Comment, Empty: h.EmptyLayer}
		if h.Created != nil && fitsJSON(h.Created.UTC()) {
			steps[k].Created = h.Created.UTC()
		}
		if !h.EmptyLayer {
			filled++
		}
	}
	if filled != len(layers) {
		for _, l := range layers {
			steps = append(steps, Step{Layer: l.Name, Size: l.Size})
		}
		return steps
	}
	for k := range steps {
		if !steps[k].Empty {
			steps[k].Layer, steps[k].Size = layers[0].Name, layers[0].Size
			layers = layers[1:]
		}
	}
	return steps
}
