package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newAttach() *cobra.Command {
	var readOnly bool
	cmd := &cobra.Command{
		Use:   "attach NAME",
		Short: "Give a node's block device, for a VM",
		Long: `Activates a node without mounting it and prints a path to its block device that stays the same for
the node's life. The node stays active until detach. A layer is always attached read-only.`,
		Example:           "  dmlayer attach vm1\n  dmlayer attach --read-only app:latest",
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				path, err := s.Attach(ctx, name, readOnly)
				if err != nil {
					return err
				}
				return a.println(path)
			})
		},
	}
	cmd.Flags().BoolVar(&readOnly, "read-only", false, "attach read-only; busy while the node is in use for writing")
	return exitCodes(cmd, 3, 5, 7, 8)
}

func (a *app) newDetach() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "detach NAME",
		Short:             "Take back what attach gave",
		Long:              "Ends an attach. The node is deactivated when nobody uses it any more.",
		Example:           "  dmlayer detach vm1",
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				return s.Detach(ctx, name)
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}
