package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newImageRm() *cobra.Command {
	var o image.RemoveOptions
	cmd := &cobra.Command{
		Use:     "rm REF...",
		Aliases: []string{"remove"},
		Short:   "Remove images",
		Long: `Removes references, with its last reference an image, and with an image the layers that nothing uses
any more. Layers that a snapshot descends from stay, without an image. Prints each reference that is
gone, or the id of an image that had none.

An image can also be named by its id or the start of it; one with several references then needs
--force, which takes all of them along.`,
		Example:           "  dmlayer image rm app:latest\n  dmlayer image rm --force 3b1740421bb3",
		Args:              args(1, -1),
		ValidArgsFunction: a.completeImages,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRefs(args); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				return forEach(ctx, args, func(ref string) error {
					removed, err := image.RemoveWith(ctx, s, o, ref)
					return errors.Join(a.printRemoved(removed), imageHint(err))
				})
			})
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "with an id: remove all references that lead to it")
	return exitCodes(cmd, 3, 5, 7, 8)
}

// printRemoved prints what is gone, a line each, and notes what had to stay.
func (a *app) printRemoved(removed []image.Removed) error {
	for _, r := range removed {
		for _, name := range newGoneImage(r).names() {
			if err := a.println(name); err != nil {
				return err
			}
		}
	}
	a.noteKept(removed)
	return nil
}

// noteKept notes which images leave layers behind that are still in use.
func (a *app) noteKept(removed []image.Removed) {
	for _, r := range removed {
		if n := len(r.Strays); n > 0 {
			a.note("%s: kept %s, still in use; dmlayer prune removes what is free", newGoneImage(r).names()[0], count(n, "layer"))
		}
	}
}
