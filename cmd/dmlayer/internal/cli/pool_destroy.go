package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
)

type poolDestroyOptions struct {
	name  string
	force bool
}

func (a *app) newPoolDestroy() *cobra.Command {
	var o poolDestroyOptions
	cmd := &cobra.Command{
		Use:   "destroy [NAME]",
		Short: "Destroy a pool and all that is in it",
		Long: `Deactivates a pool, detaches its loop devices and removes what create made. Where nodes would be
lost it asks first; without a terminal to ask on, it does nothing unless --force is given. A pool
that is in use is never destroyed, --force or not.`,
		Example:           "  dmlayer pool destroy\n  dmlayer pool destroy --force fast",
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.name, err = a.poolArg(cmd, args); err != nil {
				return err
			}
			if err := a.needRoot(cmd); err != nil {
				return err
			}
			return a.runPoolDestroy(cmd.Context(), o)
		},
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "do not ask whether nodes may be lost")
	return exitCodes(cmd, 3, 5, 8)
}

func (a *app) runPoolDestroy(ctx context.Context, o poolDestroyOptions) error {
	if !o.force {
		p, err := pool.Inspect(ctx, a.dirs(), o.name)
		if errors.Is(err, errs.ErrNotFound) {
			return err
		}
		if err != nil {
			return errs.WithHint(fmt.Errorf("see what would be lost: %w", err), "--force destroys the pool without looking")
		}
		if nodes := p.Layers + p.Snapshots + p.Volumes; nodes > 0 {
			if err := a.mayLose(o.name, nodes); err != nil {
				return err
			}
		}
	}
	return pool.Destroy(ctx, a.dirs(), o.name)
}

// mayLose asks whether nodes may be lost. nil is yes.
func (a *app) mayLose(name string, nodes int) error {
	if !isTerminal(a.in) {
		return errs.WithHint(fmt.Errorf("destroy pool %q: %s would be lost", name, count(nodes, "node")),
			"--force destroys them without asking")
	}
	return a.confirm(name, nodes)
}

// confirm asks, and takes nothing but the pool's name for a yes.
func (a *app) confirm(name string, nodes int) error {
	fmt.Fprintf(a.err, "%s of pool %q will be lost for ever. Type the pool's name to go on: ", count(nodes, "node"), name)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read the answer: %w", err)
	}
	if strings.TrimSpace(answer) != name {
		return fmt.Errorf("destroy pool %q: not confirmed, nothing was done", name)
	}
	return nil
}

func count(n int, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
