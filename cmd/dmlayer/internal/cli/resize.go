package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newResize() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resize NAME SIZE",
		Short: "Grow a snapshot and its file system",
		Long: `Grows the device of a snapshot and the file system on it, mounted or not. SIZE is the new size, +SIZE is
that much more. A node cannot be made smaller.`,
		Example:           "  dmlayer resize web1 20G\n  dmlayer resize web1 +5G",
		GroupID:           groupNodes,
		Args:              args(2, 2),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			size, more, err := parseGrowth("node", args[1])
			if err != nil {
				return err
			}
			return a.onOwnNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				if more {
					return s.ResizeBy(ctx, name, size)
				}
				return s.Resize(ctx, name, size)
			})
		},
	}
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}
