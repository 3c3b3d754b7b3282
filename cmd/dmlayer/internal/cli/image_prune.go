package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newImagePrune() *cobra.Command {
	var o image.PruneOptions
	var filters []string
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove images that nobody needs",
		Long: `Removes images that have no reference, or with --all all images, and the layers that nothing uses any
more. An image that a snapshot or a volume descends from stays. Prints each reference that is gone, or the
id of an image that had none; as JSON a list of objects with id, refs and keptLayers, the layers that are still in
use. It does not ask: --dry-run only says what would go.

Filters, which all must fit:
  label=KEY[=VALUE]        of the image's configuration; label!= for those without
  until=TIME               created before a time, such as 2026-01-31, 2026-01-31T15:00:00, or 24h for a day ago

Layers that no image has, which an interrupted load leaves, go with dmlayer prune.`,
		Example: "  dmlayer image prune\n  dmlayer image prune --all --dry-run --filter until=720h",
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if o.Filter, err = parseImageFilters(filters, a.now(), "label", "label!", "until"); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				removed, err := image.Prune(ctx, s, o)
				gone := make([]goneImage, len(removed))
				for i, r := range removed {
					gone[i] = newGoneImage(r)
				}
				printed := printGone(a, gone, goneImage.names, err)
				a.noteKept(removed)
				return printed
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.All, "all", "a", false, "also images that have references")
	f.BoolVar(&o.DryRun, "dry-run", false, "remove nothing, print what would go")
	f.StringArrayVar(&filters, "filter", nil, "`key=value`, see above; repeatable")
	return records(exitCodes(cmd, 3, 5, 7, 8))
}

// goneImage is an image that image prune removed, or would.
type goneImage struct {
	ID         string   `json:"id"`
	Refs       []string `json:"refs"`
	KeptLayers []string `json:"keptLayers"`
}

func newGoneImage(r image.Removed) goneImage {
	return goneImage{ID: r.ID, Refs: orEmpty(r.Refs), KeptLayers: orEmpty(r.Strays)}
}

// names are the references of an image, or its id where it had none.
func (g goneImage) names() []string {
	if len(g.Refs) == 0 {
		return []string{g.ID}
	}
	return g.Refs
}

// orEmpty makes a list that JSON prints as [].
func orEmpty(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
