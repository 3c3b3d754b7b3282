package image

import (
	"cmp"
	"context"
	"slices"

	"github.com/dmlayer/dmlayer/layer"
)

// Branch is a layer with what lies upon it.
type Branch struct {
	Layer     string  // name of the node; "" for the branch of the images that have no layers
	DiffID    string  // "" for a layer that did not come with an image
	Size      *int64  // bytes of its tar; nil: not known, as of what a snapshot was committed to
	Exclusive *int64  // bytes of the pool that removing it would free; nil: not known
	Imageless bool    // no image has the layer
	Images    []Image // whose top layer it is: once for each reference, and for each image without one
	Children  []*Branch
}

// Layers returns the layers of the pool as a tree, by name, also those that no image has: what snapshots were
// committed to, and what an interrupted load or the removal of an image in use has left. A layer upon a
// snapshot is shown upon the layer that the snapshot comes from.
func Layers(ctx context.Context, s *layer.Store) ([]*Branch, error) {
	return layers(ctx, storeNodes{s})
}

// nodeLister is what the functions need that look at who descends from whom.
type nodeLister interface {
	nodes
	List(ctx context.Context) ([]layer.Info, error)
}

func layers(ctx context.Context, n nodeLister) ([]*Branch, error) {
	images, err := list(ctx, n)
	if err != nil {
		return nil, err
	}
	infos, err := n.List(ctx)
	if err != nil {
		return nil, err
	}
	branches := map[string]*Branch{}
	for _, i := range infos {
		if i.Kind == layer.KindLayer {
			branches[i.Name] = newBranch(i)
		}
	}
	var bare Branch
	for _, i := range images {
		hang(branches, &bare, i)
	}
	roots := join(branches, infos)
	if len(bare.Images) > 0 {
		roots = append(roots, &bare)
	}
	return roots, nil
}

func newBranch(i layer.Info) *Branch {
	b := &Branch{Layer: i.Name, DiffID: i.Attrs[attrDiffID], Exclusive: i.Exclusive, Imageless: true}
	if size := sizeAttr(i.Attrs, attrSize); size >= 0 {
		b.Size = &size
	}
	return b
}

// hang adds an image to the branch of its top layer, and what it knows of its layers to theirs.
func hang(branches map[string]*Branch, bare *Branch, i Image) {
	for _, l := range i.Layers {
		if b := branches[l.Name]; b != nil {
			b.Size, b.Imageless = &l.Size, false
		}
	}
	if len(i.Layers) == 0 {
		bare.Images = append(bare.Images, i)
	} else if b := branches[i.TopLayer()]; b != nil { // not removed since
		b.Images = append(b.Images, i)
	}
}

// join puts each branch upon the nearest layer below it, and returns those that have none.
func join(branches map[string]*Branch, infos []layer.Info) []*Branch {
	parents := map[string]string{}
	for _, i := range infos {
		parents[i.Name] = i.Parent
	}
	var roots []*Branch
	for name, b := range branches {
		below := parents[name]
		for below != "" && branches[below] == nil {
			below = parents[below]
		}
		if below == "" {
			roots = append(roots, b)
		} else {
			branches[below].Children = append(branches[below].Children, b)
		}
	}
	byName := func(a, b *Branch) int { return cmp.Compare(a.Layer, b.Layer) }
	slices.SortFunc(roots, byName)
	for _, b := range branches {
		slices.SortFunc(b.Children, byName)
	}
	return roots
}
