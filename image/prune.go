package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dmlayer/dmlayer/layer"
)

// PruneOptions says what Prune removes.
type PruneOptions struct {
	All    bool   // also images that have references
	DryRun bool   // only say which
	Filter Filter // of these only the ones that pass it
}

// Prune removes images that have no reference, or all images, and of their layers those that nothing uses, as
// Remove does. An image stays while a snapshot or a volume descends from its top layer, or somebody has that
// layer mounted or attached. So does one whose references change at the same time. A dry run says which images would go, and
// nothing of layers.
//
// Every image is tried; the errors are joined.
func Prune(ctx context.Context, s *layer.Store, o PruneOptions) ([]Removed, error) {
	return prune(ctx, storeNodes{s}, o)
}

func prune(ctx context.Context, n nodeLister, o PruneOptions) ([]Removed, error) {
	images, err := prunable(ctx, n, o)
	if err != nil {
		return nil, err
	}
	var all []Removed
	var failed error
	for _, i := range images {
		if o.DryRun {
			all = append(all, Removed{Refs: i.Refs, ID: i.ID, Image: true})
			continue
		}
		r, err := pruneOne(ctx, n, i)
		if r.ID != "" {
			all = append(all, r)
		}
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("prune images: %w", err))
		}
		if ctx.Err() != nil {
			break
		}
	}
	return all, failed
}

// prunable returns the images that would go, each once.
func prunable(ctx context.Context, n nodeLister, o PruneOptions) ([]Image, error) {
	f := o.Filter
	if !o.All {
		dangling := true
		f.Dangling = &dangling
	}
	images, err := selected(ctx, n, f)
	if err != nil {
		return nil, err
	}
	infos, err := n.List(ctx)
	if err != nil {
		return nil, err
	}
	used := inUse(infos)
	var all []Image
	for _, i := range images {
		again := slices.ContainsFunc(all, func(other Image) bool { return other.ID == i.ID })
		if !again && !used[i.TopLayer()] {
			all = append(all, i)
		}
	}
	return all, nil
}

// inUse returns the names of the nodes that somebody uses: all but idle layers, and what they descend from.
func inUse(infos []layer.Info) map[string]bool {
	parents := map[string]string{}
	for _, i := range infos {
		parents[i.Name] = i.Parent
	}
	used := map[string]bool{}
	for _, i := range infos {
		if i.Kind == layer.KindLayer && i.State == layer.StateInactive && len(i.Claims) == 0 {
			continue
		}
		for name := i.Name; name != "" && !used[name]; name = parents[name] {
			used[name] = true
		}
	}
	return used
}

// pruneOne removes an image if its references are still those that it was chosen with.
func pruneOne(ctx context.Context, n nodes, i Image) (Removed, error) {
	r, layers, err := forget(ctx, n, i.ID, func(refs []keyedRef) ([]keyedRef, error) {
		if !slices.Equal(spellings(refs), i.Refs) {
			return nil, errMoved
		}
		return refs, nil
	})
	if errors.Is(err, errMoved) {
		return Removed{}, nil
	}
	if err != nil {
		return Removed{}, err
	}
	return removeLayers(ctx, n, r, layers)
}
