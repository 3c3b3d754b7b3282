package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

type commitOptions struct {
	snapshot, layer string
	move, trust     bool
	labels          []string
}

func (a *app) newCommit() *cobra.Command {
	var o commitOptions
	cmd := &cobra.Command{
		Use:   "commit SNAPSHOT LAYER",
		Short: "Make an immutable layer of a snapshot",
		Long: `Makes an immutable layer of what a snapshot holds now, mounted or not. The snapshot lives on; with
--move, for which nothing may use it, it becomes the layer. Prints the layer's name.`,
		Example:           "  dmlayer commit web1 web-configured",
		GroupID:           groupNodes,
		Args:              args(2, 2),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.snapshot, o.layer = args[0], args[1]
			if err := checkName(o.snapshot); err != nil {
				return err
			}
			if err := pool.ValidateNodeName("layer", o.layer, nil); err != nil {
				return err
			}
			labels, err := parseLabels(o.labels)
			if err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				name, err := newFinder(s).name(ctx, o.snapshot)
				if err != nil {
					return err
				}
				n, err := s.Commit(ctx, name, o.layer, layer.CommitOptions{Move: o.move, Unused: true, Trust: o.trust, Labels: labels})
				if err != nil {
					return err
				}
				return a.println(n.Name)
			})
		},
	}
	cmd.Flags().BoolVar(&o.move, "move", false, "turn the snapshot itself into the layer")
	cmd.Flags().BoolVar(&o.trust, "trust", false, "check a file system that strangers wrote, and trust the layer if it is sound")
	cmd.Flags().StringArrayVar(&o.labels, "label", nil, "a label of the layer, `key=value`; repeatable")
	return exitCodes(cmd, 3, 4, 5, 6, 7, 8)
}
