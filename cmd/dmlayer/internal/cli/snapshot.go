package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

type snapshotOptions struct {
	name   string
	parent string
	size   int64
	labels []string
}

func (a *app) newSnapshot() *cobra.Command {
	var o snapshotOptions
	cmd := &cobra.Command{
		Use:   "snapshot [flags] NAME",
		Short: "Make a writable snapshot",
		Long: `Makes a writable snapshot of a layer, of an image's top layer, of another snapshot, or an empty one.
It costs the same whatever its parent holds. Prints the snapshot's name.`,
		Example: `  dmlayer snapshot --parent app:latest web1
  dmlayer snapshot --size 20G --label owner=anna scratch`,
		GroupID: groupNodes,
		Args:    args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.name = args[0]
			labels, err := o.check()
			if err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				so := layer.SnapshotOptions{Size: o.size, Labels: labels}
				if o.parent != "" {
					if so.Parent, err = newFinder(s).node(ctx, o.parent); err != nil {
						return err
					}
				}
				n, err := s.CreateSnapshot(ctx, o.name, so)
				if err != nil {
					return err
				}
				return a.println(n.Name)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.parent, "parent", "", "the `node` (layer, snapshot or image) that it starts as; none: it is empty")
	f.Var(sizeFlag{&o.size}, "size", "size, not below the parent's (default: the parent's, or the pool's base size)")
	f.StringArrayVar(&o.labels, "label", nil, "a label, `key=value`; repeatable")
	a.completeFlag(cmd, "parent")
	return exitCodes(cmd, 3, 4, 5, 6, 7, 8)
}

func (o *snapshotOptions) check() (map[string]string, error) {
	if err := pool.ValidateNodeName("node", o.name, nil); err != nil {
		return nil, err
	}
	if o.parent != "" {
		if err := checkNode(o.parent); err != nil {
			return nil, err
		}
	}
	return parseLabels(o.labels)
}
