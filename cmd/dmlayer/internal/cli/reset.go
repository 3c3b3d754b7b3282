package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newReset() *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "reset SNAPSHOT",
		Short: "Set a snapshot back to its parent's content",
		Long: `Sets a snapshot back to its parent's content, or to that of another layer, in a time that does not
depend on what was written. Refused while the snapshot is in use.`,
		Example:           "  dmlayer reset vm1\n  dmlayer reset --to app:latest web1",
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkName(args[0]); err != nil {
				return err
			}
			if cmd.Flags().Changed("to") {
				if err := checkNode(to); err != nil {
					return err
				}
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				f := newFinder(s)
				name, err := f.name(ctx, args[0])
				if err != nil {
					return err
				}
				target := to
				if target != "" {
					if target, err = f.node(ctx, to); err != nil {
						return err
					}
				}
				return s.Reset(ctx, name, target)
			})
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "the `layer` or image to set it to (default: its parent)")
	a.completeFlag(cmd, "to")
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}
