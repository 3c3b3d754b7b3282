package cli

import (
	"context"
	"errors"

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
id of an image that had none. It does not ask: --dry-run only says what would go.

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
				return errors.Join(a.printRemoved(removed), err)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.All, "all", "a", false, "also images that have references")
	f.BoolVar(&o.DryRun, "dry-run", false, "remove nothing, print what would go")
	f.StringArrayVar(&filters, "filter", nil, "`key=value`, see above; repeatable")
	return exitCodes(cmd, 3, 5, 7, 8)
}
