package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newFsck() *cobra.Command {
	var repair bool
	cmd := &cobra.Command{
		Use:   "fsck NAME",
		Short: "Check a node's file system",
		Long: `Checks the file system of a node that is not in use. Changes nothing unless --repair is given, and
never a layer. What the checking program said goes to standard error.`,
		Example:           "  dmlayer fsck web1\n  dmlayer fsck --repair web1",
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onOwnNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				r, err := checkFS(ctx, s, name, repair)
				return a.reportFsck(name, r, repair, err)
			})
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "repair what is wrong")
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}

// checkFS repairs only what is not clean: e2fsck would add the lost+found that nodes do without.
func checkFS(ctx context.Context, s *layer.Store, name string, repair bool) (layer.FsckResult, error) {
	n, err := s.Get(ctx, name)
	if err != nil {
		return layer.FsckResult{}, err
	}
	if !repair || n.Kind == layer.KindLayer { // a layer is not repaired, which Fsck says
		return s.Fsck(ctx, name, repair)
	}
	if r, err := s.Fsck(ctx, name, false); err == nil || r.Output == "" {
		return r, err
	}
	return s.Fsck(ctx, name, true)
}

// reportFsck prints what a check found. Only where the checking program ran is there any output of it.
func (a *app) reportFsck(name string, r layer.FsckResult, repaired bool, err error) error {
	if text := strings.TrimSpace(r.Output); text != "" && (!r.Clean || r.Fixed) {
		a.note("%s", text)
	}
	switch {
	case err != nil && r.Output != "" && errors.Is(err, errs.ErrDamaged) && errs.Hint(err) == "":
		return errs.WithHint(err, fsckHint(name, repaired))
	case err != nil:
		return err
	case r.Fixed:
		return a.println(name + ": repaired")
	}
	return a.println(name + ": clean")
}

func fsckHint(name string, repaired bool) string {
	if repaired {
		return "it could not be repaired; reset the node, or save what can be read"
	}
	return fmt.Sprintf("dmlayer fsck --repair %s; of an image's layer, remove it and load it again", name)
}

func (a *app) newTrim() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "trim NAME",
		Short:             "Give a mounted node's free space back to the pool",
		Long:              "Tells the pool which blocks a mounted node's file system does not use. Prints how much was given back.",
		Example:           "  dmlayer trim web1",
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onOwnNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				n, err := s.Trim(ctx, name)
				if err != nil {
					return err
				}
				return a.println(fmt.Sprintf("%s: %s", name, humanSize(int64(n))))
			})
		},
	}
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}
