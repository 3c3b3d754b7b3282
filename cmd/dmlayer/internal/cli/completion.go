package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// completionTime bounds what pressing a key may cost.
const completionTime = 2 * time.Second

func (a *app) newCompletion() *cobra.Command {
	cmd := &cobra.Command{
		Use:       "completion SHELL",
		Short:     "Print the completion script of a shell",
		Long:      "Prints a script that teaches a shell to complete dmlayer's command lines: bash, zsh, fish or powershell.",
		Example:   "  dmlayer completion bash > /etc/bash_completion.d/dmlayer\n  source <(dmlayer completion zsh)",
		GroupID:   groupHelp,
		ValidArgs: []string{"bash", "zsh", "fish", "powershell"},
		Args:      args(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var b strings.Builder
			root := cmd.Root()
			var err error
			switch args[0] {
			case "bash":
				err = root.GenBashCompletionV2(&b, true)
			case "zsh":
				err = root.GenZshCompletion(&b)
			case "fish":
				err = root.GenFishCompletion(&b, true)
			case "powershell":
				err = root.GenPowerShellCompletionWithDesc(&b)
			default:
				return &usageError{fmt.Sprintf("completion: unknown shell %q", args[0]), "bash, zsh, fish and powershell are known"}
			}
			if err != nil {
				return err
			}
			return a.print(b.String())
		},
	}
	return exitCodes(cmd)
}

// completePools offers the names of pools. It starts none.
func (a *app) completePools(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, stop := context.WithTimeout(cmd.Context(), completionTime)
	defer stop()
	names, err := pool.List(ctx, a.dirs())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeNodes offers the names of nodes of a pool that is running: a key press starts no pool.
func (a *app) completeNodes(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	none := cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 && cmd.Name() == "mount" {
		return nil, cobra.ShellCompDirectiveFilterDirs
	}
	if len(args) > 0 && cmd.Name() != "rm" && cmd.Name() != "diff" || a.euid() != 0 {
		return nil, none
	}
	var names []string
	a.lookInto(cmd, func(ctx context.Context, s *layer.Store) error {
		infos, err := s.List(ctx)
		for _, i := range infos {
			names = append(names, cobra.CompletionWithDesc(i.Name, string(i.Kind)))
		}
		return err
	})
	return names, none
}

// completeImages offers the references of images in a pool that is running.
func (a *app) completeImages(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	none := cobra.ShellCompDirectiveNoFileComp
	if len(args) > 0 && cmd.Name() != "rm" || a.euid() != 0 {
		return nil, none
	}
	var names []string
	a.lookInto(cmd, func(ctx context.Context, s *layer.Store) error {
		images, err := image.List(ctx, s)
		for _, i := range images {
			if i.Ref == "" {
				names = append(names, shortID(i.ID))
			} else {
				names = append(names, cobra.CompletionWithDesc(i.Ref, shortID(i.ID)))
			}
		}
		return err
	})
	return names, none
}

// lookInto calls fn with a pool that is running, for as long as pressing a key may take. What cannot be
// found out is not offered.
func (a *app) lookInto(cmd *cobra.Command, fn func(ctx context.Context, s *layer.Store) error) {
	ctx, stop := context.WithTimeout(cmd.Context(), completionTime)
	defer stop()
	if p, err := pool.Inspect(ctx, a.dirs(), a.flags.pool); err != nil || p.State == pool.StateInactive {
		return
	}
	s, err := layer.Open(ctx, layer.Config{Dirs: a.dirs(), Pool: a.flags.pool})
	if err != nil {
		return
	}
	defer s.Close()
	_ = fn(ctx, s)
}

// completeFlag offers nodes, and images for their top layers, for a flag that names a node.
func (a *app) completeFlag(cmd *cobra.Command, flag string) {
	complete := func(cmd *cobra.Command, _ []string, start string) ([]string, cobra.ShellCompDirective) {
		nodes, directive := a.completeNodes(cmd, nil, start)
		images, _ := a.completeImages(cmd, nil, start)
		return append(nodes, images...), directive
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err) // the flag does not exist: a mistake in this program, found by every test
	}
}
