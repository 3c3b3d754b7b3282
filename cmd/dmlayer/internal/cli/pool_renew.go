package cli

import (
	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

func (a *app) newPoolRenew() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "renew [NAME]",
		Short: "Make the counts that the kernel limits begin anew",
		Long: `A pool takes 16.7 million snapshots in its life, and has as many thin ids; pool inspect counts both,
and near the end every command says so. This makes both counts begin anew: the pool is stopped, a copy of its
metadata is rewritten with small numbers, the records follow, and the pool is started again. What is in it
stays as it is. It needs room for a second metadata file. Prints the pool's name.`,
		Example:           "  dmlayer pool renew\n  dmlayer pool renew fast",
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE:              a.onPool(a.renewPool),
	}
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}

func (a *app) renewPool(cmd *cobra.Command, name string) error {
	ctx := cmd.Context()
	// An open finishes what dead processes left, which would be renewed along.
	s, err := layer.Open(ctx, layer.Config{Dirs: a.dirs(), Pool: name, Logger: a.logger()})
	if err == nil {
		err = s.Close()
	}
	if err != nil {
		return err
	}
	done, err := pool.Renew(ctx, a.dirs(), name, func(step string) { a.note("%s", step) })
	if err != nil {
		return err
	}
	a.note("before: %s\nnow: %s", done.Before, done.After)
	return a.println(name)
}
