package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newRm() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove nodes",
		Long: `Removes nodes and prints the name of each that is gone. A node that is in use, that has children or
that belongs to an image is left alone, and the error says who needs it.`,
		Example:           "  dmlayer rm web1 web2",
		GroupID:           groupNodes,
		Args:              args(1, -1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNames(args); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				f := newFinder(s)
				return forEach(ctx, args, func(arg string) error {
					name, err := f.name(ctx, arg)
					if err != nil {
						return err
					}
					if err := s.Remove(ctx, name); err != nil {
						return err
					}
					return a.println(name)
				})
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}

func (a *app) newPrune() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove layers that nothing uses",
		Long: `Removes layers that have no child, belong to no image and are not in use, again and again until none
is left. Snapshots and volumes stay. Prints the name of each layer that is gone.`,
		Example: "  dmlayer prune --dry-run\n  dmlayer prune",
		GroupID: groupNodes,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				names, err := s.Prune(ctx, dryRun)
				for _, name := range names {
					if err := a.println(name); err != nil {
						return err
					}
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "remove nothing, print what would go")
	return exitCodes(cmd, 3, 5, 7, 8)
}
