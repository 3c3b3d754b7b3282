package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *app) newRm() *cobra.Command {
	var noWait bool
	cmd := &cobra.Command{
		Use:     "rm NAME...",
		Aliases: []string{"remove"},
		Short:   "Remove nodes",
		Long: `Removes nodes and prints the name of each that is gone. A node that is in use, that has children or
that belongs to an image is left alone, and the error says who needs it. A copy of a mount in another
mount namespace keeps no node: it is told who has it, and the space comes back after the last of them.

A node is gone at once, also if the machine dies. What only it had is then given back to the pool and to
what lies below, a part at a time: by dmlayer serve where that runs, else by this command, with a
progress bar on a terminal. --no-wait leaves it to the next command; so does an interruption.`,
		Example:           "  dmlayer rm web1 web2",
		GroupID:           groupNodes,
		Args:              args(1, -1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkNames(args); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				f := newFinder(s)
				return forEach(ctx, args, func(arg string) error {
					name, err := f.name(ctx, arg)
					if err != nil {
						return err
					}
					return a.removeNode(ctx, s, name, noWait)
				})
			})
		},
	}
	cmd.Flags().BoolVar(&noWait, "no-wait", false, "leave what takes time to serve or the next command")
	return exitCodes(cmd, 3, 5, 7, 8)
}

func (a *app) removeNode(ctx context.Context, s *layer.Store, name string, noWait bool) error {
	if !noWait {
		var err error
		if noWait, err = s.Pool().Served(ctx); err != nil {
			return err
		}
	}
	bar := newByteBar(a.err, name)
	// What is said of an interruption needs a clean terminal.
	stop := context.AfterFunc(ctx, bar.end)
	defer stop()
	r, err := s.RemoveNode(ctx, name, layer.RemoveOptions{NoWait: noWait, Progress: bar.show})
	bar.end()
	for _, u := range r.Users {
		a.note("%s: its file system is %s: its space comes back after that", name, u)
	}
	if !r.Gone {
		return err
	}
	if err != nil && ctx.Err() != nil {
		err = errs.WithHint(err, name+" is removed; dmlayer serve or the next command gives the rest of its space back")
	}
	return errors.Join(a.println(name), err)
}

func (a *app) newPrune() *cobra.Command {
	var dryRun bool
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove layers that nothing uses",
		Long: `Removes layers that have no child, belong to no image and are not in use, again and again until none
is left. Snapshots and volumes stay. Prints the name of each layer that is gone, or would be; as JSON a list of
objects with name.`,
		Example: "  dmlayer prune --dry-run\n  dmlayer prune",
		GroupID: groupNodes,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				names, err := s.Prune(ctx, dryRun)
				gone := make([]goneLayer, len(names))
				for i, name := range names {
					gone[i].Name = name
				}
				return printGone(a, gone, func(g goneLayer) []string { return []string{g.Name} }, err)
			})
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "remove nothing, print what would go")
	return records(exitCodes(cmd, 3, 5, 7, 8))
}

// goneLayer is a layer that prune removed, or would.
type goneLayer struct {
	Name string `json:"name"`
}

// printGone prints what a command removed, or would, until err ended it: the names, a line each, or records where
// --format asks for them. An empty list is printed only of a command that succeeded. It returns err, or why it could
// not print.
func printGone[T any](a *app, gone []T, names func(T) []string, err error) error {
	if a.format.tmpl != nil || a.format.json && !a.flags.quiet {
		if err != nil && len(gone) == 0 {
			return err
		}
		return errors.Join(printList(a, gone, nil, nil), err)
	}
	for _, g := range gone {
		for _, name := range names(g) {
			if err := a.println(name); err != nil {
				return err
			}
		}
	}
	return err
}
