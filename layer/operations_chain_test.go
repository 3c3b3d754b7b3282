package layer_test

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/layer"
)

// chainOperations make layers one on the other. What an interruption leaves of a chain is its beginning, and
// whoever comes next goes on from there.
func chainOperations() []operation {
	const layers = 3
	names := func(p string) []string {
		names := make([]string, layers)
		for i := range names {
			names[i] = fmt.Sprintf("%sc%d", p, i)
		}
		return names
	}
	return []operation{{
		name: "chain", onXFS: true, prepare: nothing,
		run: func(ctx context.Context, s *layer.Store, p string) error {
			return load(ctx, s, chainOf("base", names(p)...))
		},
		done: func(ctx context.Context, w *world) (bool, error) {
			there := 0
			for i, name := range names(w.p) {
				ok, err := w.exists(ctx, name)
				if err != nil {
					return false, err
				}
				if ok && there < i {
					return false, fmt.Errorf("%s without the layers before it", name)
				}
				if ok {
					there++
				}
			}
			return there == layers, wantChain(ctx, w.s, names(w.p)[:there]...)
		},
	}}
}

// load makes what there is not yet of a chain, whoever else makes it too.
func load(ctx context.Context, s *layer.Store, layers []layer.NewLayer) error {
	for i := 0; i < len(layers); {
		made, err := s.CreateLayers(ctx, layers[i:])
		switch {
		case errors.Is(err, layer.ErrExists):
			i++
		case err != nil:
			return err
		default:
			i += len(made)
		}
		if i < len(layers) {
			layers[i].Options.Parent = layers[i-1].Name
		}
	}
	return nil
}
