package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newImageTag() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "tag REF NEW",
		Short: "Give an image one more reference",
		Long: `Gives an image one more reference and prints it; without a tag it gets the tag latest. A reference that
another image has moves to this one; an image that loses its last reference so stays, without one.`,
		Example:           "  dmlayer image tag app:latest example.com/team/app:v1\n  dmlayer image tag 3b1740421bb3 app:old",
		Args:              args(2, 2),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRef(args[0]); err != nil {
				return err
			}
			if err := image.CheckTag(args[1]); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				ref, err := image.Tag(ctx, s, args[0], args[1])
				if err != nil {
					return imageHint(err)
				}
				return a.println(ref)
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}
