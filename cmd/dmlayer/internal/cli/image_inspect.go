package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newImageInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect REF",
		Short: "Show an image as JSON",
		Long: `Shows one image as one JSON object: what image ls --format json prints of it, and its configuration. REF is
a reference, an id or the start of an id.`,
		Example:           "  dmlayer image inspect app:latest\n  dmlayer image inspect --format '{{json .Config}}' app:latest",
		Args:              args(1, 1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				i, err := image.Get(ctx, s, args[0])
				if err != nil {
					return imageHint(err)
				}
				d := newImageDetails(i)
				return printRecord(a, d, d.name(), true, []field{
					{"Reference", orDash(d.Ref)},
					{"ID", d.ID},
					{"References", orDash(strings.Join(d.Refs, ", "))},
					{"Platform", orDash(d.Platform)},
					{"Size", humanSize(d.Size)},
					{"Created", a.ageOf(d.Created)},
					{"Loaded", a.age(d.Loaded)},
					{"Layers", orDash(strings.Join(d.Layers, ", "))},
				})
			})
		},
	}
	return records(exitCodes(cmd, 3, 7, 8))
}
