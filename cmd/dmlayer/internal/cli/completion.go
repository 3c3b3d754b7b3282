package cli

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

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
	ctx, stop := context.WithTimeout(cmd.Context(), completionTime)
	defer stop()
	if p, err := pool.Inspect(ctx, a.dirs(), a.flags.pool); err != nil || p.State == pool.StateInactive {
		return nil, none
	}
	s, err := layer.Open(ctx, layer.Config{Dirs: a.dirs(), Pool: a.flags.pool})
	if err != nil {
		return nil, none
	}
	defer s.Close()
	infos, err := s.List(ctx)
	if err != nil {
		return nil, none
	}
	names := make([]string, len(infos))
	for i, info := range infos {
		names[i] = cobra.CompletionWithDesc(info.Name, string(info.Kind))
	}
	return names, none
}

// completeFlag offers nodes for a flag that names one.
func (a *app) completeFlag(cmd *cobra.Command, flag string) {
	complete := func(cmd *cobra.Command, _ []string, start string) ([]string, cobra.ShellCompDirective) {
		return a.completeNodes(cmd, nil, start)
	}
	if err := cmd.RegisterFlagCompletionFunc(flag, complete); err != nil {
		panic(err) // the flag does not exist: a mistake in this program, found by every test
	}
}
