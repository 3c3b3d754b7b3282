package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

func (a *app) newRename() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "rename OLD NEW",
		Short:             "Rename a node",
		Long:              "Gives a node another name. Its content, its children and where it is mounted stay. A layer from an image keeps its name, by which the\nimage finds it.",
		Example:           "  dmlayer rename web1 web-old",
		GroupID:           groupNodes,
		Args:              args(2, 2),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := pool.ValidateName("node", args[1]); err != nil {
				return err
			}
			return a.onOwnNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				return s.Rename(ctx, name, args[1])
			})
		},
	}
	return exitCodes(cmd, 3, 4, 5, 7, 8)
}

func (a *app) newLabel() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "label NAME KEY=VALUE|KEY-...",
		Short: "Set and remove labels of a node",
		Long:  "Sets labels of a node: KEY=VALUE sets one, KEY- removes one. Labels are for people and for ls --filter.",
		Example: `  dmlayer label web1 owner=anna tier=front
  dmlayer label web1 tier-`,
		GroupID:           groupNodes,
		Args:              args(2, -1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			set, remove, err := parseLabelChanges(args[1:])
			if err != nil {
				return err
			}
			return a.onOwnNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				return s.Label(ctx, name, set, remove)
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}

// parseLabelChanges reads KEY=VALUE and KEY- words.
func parseLabelChanges(words []string) (set map[string]string, remove []string, err error) {
	set = map[string]string{}
	seen := map[string]bool{}
	for _, word := range words {
		key, value, isSet := strings.Cut(word, "=")
		if !isSet {
			var isRemove bool
			if key, isRemove = strings.CutSuffix(word, "-"); !isRemove {
				return nil, nil, usagef("label %q: must be KEY=VALUE, or KEY- to remove it", word)
			}
		}
		if err := checkLabel(key, value); err != nil {
			return nil, nil, err
		}
		if seen[key] {
			return nil, nil, usagef("label %q: given twice", key)
		}
		seen[key] = true
		if isSet {
			set[key] = value
		} else {
			remove = append(remove, key)
		}
	}
	return set, remove, nil
}
