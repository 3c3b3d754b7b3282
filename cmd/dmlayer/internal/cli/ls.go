package cli

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

// nodeRecord is a node as ls prints it. Its fields are the CLI's promise.
type nodeRecord struct {
	Name       string            `json:"name"`
	Kind       string            `json:"kind"`
	Parent     string            `json:"parent"`
	Size       int64             `json:"size"`
	Used       *int64            `json:"used"`
	Exclusive  *int64            `json:"exclusive"`
	State      string            `json:"state"`
	Device     string            `json:"device"`
	Mountpoint string            `json:"mountpoint"`
	Created    time.Time         `json:"created"`
	Labels     map[string]string `json:"labels"`
	Lost       *layer.Loss       `json:"lost"`

	MountpointBytes []byte `json:"mountpointBytes"` // where the mountpoint is not UTF-8
}

func newNodeRecord(i layer.Info) nodeRecord {
	r := nodeRecord{
		Name: i.Name, Kind: string(i.Kind), Parent: i.Parent, Size: i.Size, Used: i.Used, Exclusive: i.Exclusive,
		State: i.State, Device: i.Device, Created: i.Created.UTC(), Labels: i.Labels, Lost: i.Lost,
	}
	if len(i.Mountpoints) > 0 {
		r.Mountpoint, r.MountpointBytes = i.Mountpoints[0], bytesOf(i.Mountpoints[0])
	}
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	return r
}

type lsOptions struct {
	filters []string
	sort    string
	noTrunc bool
}

func (a *app) newLs() *cobra.Command {
	o := lsOptions{}
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List layers and snapshots",
		Long: `Lists the nodes of a pool. Filters are kind=, parent= and label=KEY or label=KEY=VALUE; those of one
key are alternatives, except that a node must have every label, and all keys must fit.

USED is what a node has in the pool, together with others; EXCLUSIVE is what removing it would free. In JSON a
mountpoint that is not UTF-8 has its bytes in mountpointBytes, in base64, which is null of others.`,
		Example: `  dmlayer ls
  dmlayer ls --filter kind=snapshot --filter label=owner=anna --sort used
  dmlayer ls --format '{{.Name}} {{size .Size}}'`,
		GroupID: groupNodes,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := parseFilters(o.filters)
			if err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				if err := filter.resolve(ctx, newFinder(s)); err != nil {
					return err
				}
				infos, err := s.List(ctx)
				if err != nil {
					return err
				}
				if !a.flags.quiet || measuredKeys[o.sort] {
					if err := a.measure(ctx, s, infos); err != nil {
						return err
					}
				}
				return printList(a, listNodes(infos, filter, o.sort), func(r nodeRecord) string { return r.Name }, a.nodeColumns(o.noTrunc))
			})
		},
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.filters, "filter", nil, "`key=value`: kind=layer|snapshot|volume, parent=NODE, label=KEY[=VALUE]; repeatable")
	f.Var(choiceFlag{&o.sort, sortKeys}, "sort", "what to sort by: names upwards, sizes downwards, newest first (default name)")
	f.BoolVar(&o.noTrunc, "no-trunc", false, "print the names of images' layers whole")
	return records(exitCodes(cmd, 3, 7, 8))
}

func (a *app) nodeColumns(whole bool) []column[nodeRecord] {
	short := shortName
	if whole {
		short = func(s string) string { return s }
	}
	return []column[nodeRecord]{
		{"NAME", func(r nodeRecord) string { return short(r.Name) }},
		{"KIND", func(r nodeRecord) string { return r.Kind }},
		{"PARENT", func(r nodeRecord) string { return orDash(short(r.Parent)) }},
		{"SIZE", func(r nodeRecord) string { return humanSize(r.Size) }},
		{"USED", func(r nodeRecord) string { return humanSizeOr(r.Used, "-") }},
		{"EXCLUSIVE", func(r nodeRecord) string { return humanSizeOr(r.Exclusive, "-") }},
		{"STATE", nodeState},
		{"MOUNTPOINT", func(r nodeRecord) string { return orDash(r.Mountpoint) }},
		{"CREATED", func(r nodeRecord) string { return a.age(r.Created) }},
	}
}

// nodeState is what a node's kernel device is doing, and whether the node is whole.
func nodeState(r nodeRecord) string {
	if r.Lost != nil {
		return r.State + ", lost blocks"
	}
	return r.State
}

var sortKeys = []string{"name", "size", "used", "exclusive", "created"}

// measuredKeys are the sort keys that List does not know.
var measuredKeys = map[string]bool{"used": true, "exclusive": true}

// measure finds out what nodes take. That it cannot be found out is no reason not to show the rest.
func (a *app) measure(ctx context.Context, s *layer.Store, infos []layer.Info) error {
	err := s.Measure(ctx, infos)
	if err != nil && ctx.Err() == nil {
		a.note("what is used is not known, or not of all: %s", err)
		return nil
	}
	return err
}

// listNodes returns the records of the nodes that pass the filter, sorted.
func listNodes(infos []layer.Info, f nodeFilter, key string) []nodeRecord {
	list := []nodeRecord{}
	for _, i := range infos {
		if f.passes(i.Node) {
			list = append(list, newNodeRecord(i))
		}
	}
	slices.SortStableFunc(list, func(x, y nodeRecord) int {
		var c int
		switch key {
		case "size":
			c = cmp.Compare(y.Size, x.Size)
		case "used":
			c = cmp.Compare(orMinus(y.Used), orMinus(x.Used))
		case "exclusive":
			c = cmp.Compare(orMinus(y.Exclusive), orMinus(x.Exclusive))
		case "created":
			c = y.Created.Compare(x.Created)
		}
		return cmp.Or(c, cmp.Compare(x.Name, y.Name))
	})
	return list
}

// orMinus sorts the unknown behind everything that is known.
func orMinus(n *int64) int64 {
	if n == nil {
		return -1
	}
	return *n
}

// nodeFilter chooses nodes. Its zero value passes all.
type nodeFilter struct {
	kinds, parents []string
	labels         [][]string // key, or key and value
}

func parseFilters(words []string) (nodeFilter, error) {
	var f nodeFilter
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || value == "" {
			return f, usagef("--filter %q: must be kind=, parent= or label= with a value", word)
		}
		switch key {
		case "kind":
			if !slices.Contains([]string{string(layer.KindLayer), string(layer.KindSnapshot), string(layer.KindVolume)}, value) {
				return f, usagef("--filter %q: the kinds are layer, snapshot and volume", word)
			}
			f.kinds = append(f.kinds, value)
		case "parent":
			if err := checkNode(value); err != nil {
				return f, err
			}
			f.parents = append(f.parents, value)
		case "label":
			f.labels = append(f.labels, strings.SplitN(value, "=", 2))
		default:
			return f, usagef("--filter %q: the keys are kind, parent and label", word)
		}
	}
	return f, nil
}

// resolve replaces what names the parents by their names.
func (f *nodeFilter) resolve(ctx context.Context, find finder) (err error) {
	for i, p := range f.parents {
		if f.parents[i], err = find.node(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

func (f *nodeFilter) passes(n layer.Node) bool {
	if len(f.kinds) > 0 && !slices.Contains(f.kinds, string(n.Kind)) {
		return false
	}
	if len(f.parents) > 0 && !slices.Contains(f.parents, n.Parent) {
		return false
	}
	for _, want := range f.labels {
		value, ok := n.Labels[want[0]]
		if !ok || len(want) == 2 && value != want[1] {
			return false
		}
	}
	return true
}
