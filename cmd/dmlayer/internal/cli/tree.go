package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

// treeNode is a node with its children, as tree prints it.
type treeNode struct {
	nodeRecord
	Images   []string    `json:"images"`
	Children []*treeNode `json:"children"`
}

func (a *app) newTree() *cobra.Command {
	var noTrunc bool
	cmd := &cobra.Command{
		Use:   "tree",
		Short: "Show who descends from whom",
		Long: `Shows the nodes of a pool as a tree, each with its kind and size, and images at their top layers. In
JSON each node has its children inside; a template is applied to each node that has no parent.`,
		Example: "  dmlayer tree",
		GroupID: groupNodes,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				infos, err := s.List(ctx)
				if err != nil {
					return err
				}
				images, err := image.List(ctx, s)
				if err != nil {
					return err
				}
				return a.printTree(buildTree(infos, topLayers(images)), noTrunc)
			})
		},
	}
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "print the names of images' layers whole")
	return records(exitCodes(cmd, 3, 7, 8))
}

// topLayers returns the references of the images on each top layer.
func topLayers(images []image.Image) map[string][]string {
	tops := map[string][]string{}
	for _, i := range images {
		if top := i.TopLayer(); top != "" && i.Ref != "" {
			tops[top] = append(tops[top], i.Ref)
		}
	}
	return tops
}

// buildTree returns the nodes without a parent, sorted by name, with their descendants. A node whose
// parent is not among infos counts as one without.
func buildTree(infos []layer.Info, images map[string][]string) []*treeNode {
	nodes := make(map[string]*treeNode, len(infos))
	for _, i := range infos {
		refs := images[i.Name]
		if refs == nil {
			refs = []string{}
		}
		nodes[i.Name] = &treeNode{nodeRecord: newNodeRecord(i), Images: refs, Children: []*treeNode{}}
	}
	roots := []*treeNode{}
	for _, i := range infos {
		n := nodes[i.Name]
		if parent := nodes[i.Parent]; parent != nil {
			parent.Children = append(parent.Children, n)
		} else {
			roots = append(roots, n)
		}
	}
	byName := func(x, y *treeNode) int { return strings.Compare(x.Name, y.Name) }
	slices.SortFunc(roots, byName)
	for _, n := range nodes {
		slices.SortFunc(n.Children, byName)
	}
	return roots
}

func (a *app) printTree(roots []*treeNode, whole bool) error {
	line := func(n *treeNode) string { return n.line(a.flags.quiet, whole) }
	children := func(n *treeNode) []*treeNode { return n.Children }
	return printForest(a, roots, line, children)
}

// printForest prints trees: by a template each root, as JSON, or drawn.
func printForest[T any](a *app, roots []T, line func(T) string, children func(T) []T) error {
	switch {
	case a.format.tmpl != nil:
		for _, n := range roots {
			if err := a.printTemplate(n); err != nil {
				return err
			}
		}
		return nil
	case a.format.json:
		return a.printJSON(roots)
	}
	var b strings.Builder
	var draw func(n T, head, indent string)
	draw = func(n T, head, indent string) { // n behind head, and its descendants behind indent
		b.WriteString(head + line(n) + "\n")
		below := children(n)
		for i, child := range below {
			if i < len(below)-1 {
				draw(child, indent+"├── ", indent+"│   ")
			} else {
				draw(child, indent+"└── ", indent+"    ")
			}
		}
	}
	for _, n := range roots {
		draw(n, "", "")
	}
	return a.print(b.String())
}

func (n *treeNode) line(nameOnly, whole bool) string {
	name := n.Name
	if !whole {
		name = shortName(name)
	}
	if nameOnly {
		return name
	}
	line := name + "  " + n.Kind + ", " + humanSize(n.Size)
	if n.State != layer.StateInactive {
		line += ", " + n.State
	}
	if len(n.Images) > 0 {
		line += "  [" + strings.Join(n.Images, ", ") + "]"
	}
	return line
}
