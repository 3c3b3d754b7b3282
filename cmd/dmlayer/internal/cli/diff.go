package cli

import (
	"bufio"
	"context"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

type diffOptions struct {
	node, other string
	tar, trust  bool
}

// changeRecord is one change as diff prints it.
type changeRecord struct {
	Kind      string `json:"kind"`
	Path      string `json:"path"`
	PathBytes []byte `json:"pathBytes"`
}

func (c changeRecord) String() string { return c.Kind + " " + printablePath(c.Path) }

func (a *app) newDiff() *cobra.Command {
	var o diffOptions
	cmd := &cobra.Command{
		Use:   "diff NAME [OTHER]",
		Short: "Show what changed in a node",
		Long: `Shows what differs between a node and its parent, or between it and OTHER: A (added), C (changed) or D
(deleted), a space and the path from the node's root, a line each. A path with control characters is
printed in quotes, as in Go; in JSON one that is not UTF-8 has its bytes in pathBytes, in base64, which is null
of others. With --tar an OCI layer tar is written to standard output.`,
		Example:           "  dmlayer diff web1\n  dmlayer diff web1 app:latest\n  dmlayer diff --tar web1 > layer.tar",
		GroupID:           groupNodes,
		Args:              args(1, 2),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.node = args[0]
			if len(args) == 2 {
				o.other = args[1]
			}
			if err := a.checkDiff(args, o); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error { return a.runDiff(ctx, s, o) })
		},
	}
	cmd.Flags().BoolVar(&o.trust, "trust", false, "check file systems that strangers wrote, and trust them from now on if they are sound")
	cmd.Flags().BoolVar(&o.tar, "tar", false, "write an OCI layer tar to standard output")
	return records(exitCodes(cmd, 3, 5, 7, 8))
}

func (a *app) checkDiff(args []string, o diffOptions) error {
	for _, arg := range args {
		if err := checkNode(arg); err != nil {
			return err
		}
	}
	if o.tar && a.format.tmpl != nil {
		return usagef("--tar and a template exclude each other")
	}
	if o.tar && isTerminal(a.out) {
		return &usageError{"diff --tar: will not write a tar to a terminal", "redirect standard output to a file or a pipe"}
	}
	return nil
}

func (a *app) runDiff(ctx context.Context, s *layer.Store, o diffOptions) error {
	f := newFinder(s)
	upper, err := f.node(ctx, o.node)
	if err != nil {
		return err
	}
	lower := ""
	if o.other != "" {
		if lower, err = f.node(ctx, o.other); err != nil {
			return err
		}
	} else {
		n, err := s.Get(ctx, upper)
		if err != nil {
			return err
		}
		lower = n.Parent
	}
	if lower == upper {
		return usagef("diff: %q is compared with itself", upper)
	}
	lineage, err := sameLineage(ctx, s.Get, lower, upper)
	if err != nil {
		return err
	}
	names := []string{upper}
	if lower != "" {
		names = append(names, lower)
	}
	view := s.View
	if o.trust {
		view = s.ViewLeft
		for _, name := range names {
			if err := s.Trust(ctx, name); err != nil {
				return err
			}
		}
	}
	return view(ctx, names, func(ctx context.Context, roots []string) error {
		below := ""
		if lower != "" {
			below = roots[1]
		}
		opts := layertar.DiffOptions{SameLineage: lineage}
		if o.tar {
			return layertar.WriteDiff(ctx, a.out, below, roots[0], layertar.WriteOptions{DiffOptions: opts})
		}
		return a.printChanges(ctx, below, roots[0], opts)
	})
}

// sameLineage tells whether upper began as a copy of lower, through any number of generations, and
// lower has not changed since: then a file with the same inode and change time is the same file.
func sameLineage(ctx context.Context, get func(context.Context, string) (layer.Node, error), lower, upper string) (bool, error) {
	if lower == "" {
		return false, nil
	}
	n, err := get(ctx, lower)
	if err != nil || n.Kind != layer.KindLayer {
		return false, err
	}
	for name := upper; name != ""; {
		n, err := get(ctx, name)
		if err != nil {
			return false, err
		}
		if n.Parent == lower {
			return true, nil
		}
		name = n.Parent
	}
	return false, nil
}

func (a *app) printChanges(ctx context.Context, lower, upper string, o layertar.DiffOptions) error {
	w := bufio.NewWriter(a.out)
	list := []changeRecord{}
	err := layertar.Changes(ctx, lower, upper, o, func(c layertar.Change) error {
		r := changeRecord{c.Kind.String(), c.Path, bytesOf(c.Path)}
		switch {
		case a.format.tmpl != nil:
			return a.printTemplate(r)
		case a.format.json:
			list = append(list, r)
			return nil
		case a.flags.quiet:
			_, err := fmt.Fprintln(w, printablePath(r.Path))
			return err
		}
		_, err := fmt.Fprintln(w, r)
		return err
	})
	if err != nil {
		return err
	}
	if a.format.json {
		return a.printJSON(list)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write to standard output: %w", err)
	}
	return nil
}

// printablePath keeps a path on one line and a terminal in order. What is quoted cannot be mistaken
// for a path, which begins with a slash.
func printablePath(path string) string {
	if strings.ContainsFunc(path, unicode.IsControl) {
		return strconv.Quote(path)
	}
	return path
}
