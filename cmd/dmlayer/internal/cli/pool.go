package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/pool"
)

func (a *app) newPool() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "pool COMMAND",
		Short: "Make, look at, start, stop, check and destroy pools",
		Long: `A pool holds layers, snapshots and their data: one dm thin pool with its data and metadata, a
record of what is in it, and its settings. Any command that needs the pool starts it.`,
		Example: `  dmlayer pool create
  dmlayer pool status`,
		GroupID: groupPools,
		Args:    noSubcommand,
		RunE:    missingSubcommand,
	}
	cmd.AddCommand(a.newPoolCreate(), a.newPoolLs(), a.newPoolInspect(), a.newPoolStatus(),
		a.newPoolStart(), a.newPoolStop(), a.newPoolCheck(), a.newPoolImport(), a.newPoolExtend(), a.newPoolSet(), a.newPoolTrim(), a.newPoolRenew(), a.newPoolDestroy())
	return exitCodes(cmd)
}

func (a *app) newPoolStart() *cobra.Command {
	return a.poolVerb("start", "Start a pool after a reboot", `Starts a pool: loop devices, then the thin pool. Every command that needs a pool does it on
demand; a pool that runs already is left alone.`, []int{3, 5, 7, 8}, pool.Start)
}

func (a *app) newPoolStop() *cobra.Command {
	return a.poolVerb("stop", "Stop a pool", `Copies the records of a pool to a backup and into the pool, and deactivates everything of it in
order. Nothing is done, and the holders are named, where something is in use. A copy that cannot be
made is an error, and the pool is stopped all the same.`, []int{3, 5, 6, 7, 8}, pool.Stop)
}

// onPool is what a command about one pool runs: fn, with the pool's name.
func (a *app) onPool(fn func(cmd *cobra.Command, name string) error) func(cmd *cobra.Command, args []string) error {
	return func(cmd *cobra.Command, args []string) error {
		name, err := a.poolArg(cmd, args)
		if err != nil {
			return err
		}
		if err := a.needRoot(cmd); err != nil {
			return err
		}
		return fn(cmd, name)
	}
}

// poolVerb makes a command that does one thing to one pool.
func (a *app) poolVerb(verb, short, long string, codes []int, do func(context.Context, pool.Dirs, string) error) *cobra.Command {
	cmd := &cobra.Command{
		Use:               verb + " [NAME]",
		Short:             short,
		Long:              long,
		Example:           fmt.Sprintf("  dmlayer pool %s\n  dmlayer pool %[1]s fast", verb),
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: a.onPool(func(cmd *cobra.Command, name string) error {
			return do(cmd.Context(), a.dirs(), name)
		}),
	}
	return exitCodes(cmd, codes...)
}
