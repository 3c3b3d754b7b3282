package cli

import (
	"cmp"
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

// branchRecord is a layer with what lies upon it. Its fields are the CLI's promise.
type branchRecord struct {
	Layer     string          `json:"layer"` // "" for the images that have no layers
	DiffID    string          `json:"diffId"`
	Size      *int64          `json:"size"`
	Exclusive *int64          `json:"exclusive"`
	Imageless bool            `json:"imageless"`
	Images    []imageEnd      `json:"images"`
	Children  []*branchRecord `json:"children"`
}

// imageEnd is an image at its top layer.
type imageEnd struct {
	Ref string `json:"ref"`
	ID  string `json:"id"`
}

func newBranchRecords(branches []*image.Branch) []*branchRecord {
	list := []*branchRecord{}
	for _, b := range branches {
		r := &branchRecord{
			Layer: b.Layer, DiffID: b.DiffID, Size: b.Size, Exclusive: b.Exclusive, Imageless: b.Imageless,
			Images: []imageEnd{}, Children: newBranchRecords(b.Children),
		}
		for _, i := range b.Images {
			r.Images = append(r.Images, imageEnd{i.Ref, i.ID})
		}
		list = append(list, r)
	}
	return list
}

func (a *app) newImageTree() *cobra.Command {
	var noTrunc bool
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Show which layers images have and share",
		Long: `Shows the layers of a pool as a tree, each with its size, and images at their top layers: by reference, or by
id where they have none. Layers that no image has are shown too: what an interrupted load left, what snapshots
were committed to, and what snapshots of removed images use. In JSON each layer has its children inside; a template is applied to each layer
that has no parent. dmlayer tree shows the snapshots as well.`,
		Example: "  dmlayer image tree",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				branches, err := image.Layers(ctx, s)
				if err != nil {
					return err
				}
				return a.printBranches(newBranchRecords(branches), noTrunc)
			})
		},
	}
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print names and ids whole")
	return records(exitCodes(cmd, 3, 7, 8))
}

func (a *app) printBranches(roots []*branchRecord, whole bool) error {
	line := func(r *branchRecord) string { return r.line(a.flags.quiet, whole) }
	children := func(r *branchRecord) []*branchRecord { return r.Children }
	return printForest(a, roots, line, children)
}

func (r *branchRecord) line(nameOnly, whole bool) string {
	name := cmp.Or(r.Layer, "(no layers)")
	if !whole {
		name = shortName(name)
	}
	if nameOnly {
		return name
	}
	if r.Size != nil {
		name += "  " + humanSize(*r.Size)
	}
	if r.Imageless {
		name += "  in no image"
	}
	var images []string
	for _, i := range r.Images {
		id := i.ID
		if !whole {
			id = shortID(id)
		}
		images = append(images, cmp.Or(i.Ref, id))
	}
	if len(images) > 0 {
		name += "  [" + strings.Join(images, ", ") + "]"
	}
	return name
}
