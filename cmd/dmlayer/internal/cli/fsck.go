package cli

import (
	"context"
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
			if err := checkName(args[0]); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				name, err := newFinder(s).name(ctx, args[0])
				if err != nil {
					return err
				}
				r, err := s.Fsck(ctx, name, repair)
				if err != nil {
					return err
				}
				return a.reportFsck(name, r, repair)
			})
		},
	}
	cmd.Flags().BoolVar(&repair, "repair", false, "repair what is wrong")
	return exitCodes(cmd, 3, 5, 7, 8)
}

func (a *app) reportFsck(name string, r layer.FsckResult, repaired bool) error {
	if text := strings.TrimSpace(r.Output); text != "" && (!r.Clean || r.Fixed) {
		a.note("%s", text)
	}
	switch {
	case r.Fixed:
		return a.println(name + ": repaired")
	case r.Clean:
		return a.println(name + ": clean")
	}
	err := fmt.Errorf("check the file system of %q: it has errors: %w", name, errs.ErrDamaged)
	if repaired {
		return errs.WithHint(err, "it could not be repaired; reset the node, or save what can be read")
	}
	return errs.WithHint(err, fmt.Sprintf("dmlayer fsck --repair %s", name))
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
			if err := checkName(args[0]); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				name, err := newFinder(s).name(ctx, args[0])
				if err != nil {
					return err
				}
				n, err := s.Trim(ctx, name)
				if err != nil {
					return err
				}
				return a.println(fmt.Sprintf("%s: %s", name, humanSize(int64(n))))
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}
