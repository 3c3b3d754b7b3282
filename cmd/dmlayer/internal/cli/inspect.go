package cli

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

// nodeDetails is a node as inspect prints it: the record of ls and what does not fit a line.
type nodeDetails struct {
	nodeRecord
	FS          string            `json:"fs"`
	Mountpoints []string          `json:"mountpoints"`
	Claims      []string          `json:"claims"`
	Attrs       map[string]string `json:"attrs"`
	Foreign     bool              `json:"foreign"`

	MountpointsBytes [][]byte `json:"mountpointsBytes"` // one for each of Mountpoints
}

func newNodeDetails(i layer.Info) nodeDetails {
	d := nodeDetails{nodeRecord: newNodeRecord(i), FS: i.FS, Mountpoints: i.Mountpoints, Claims: i.Claims, Attrs: i.Attrs, Foreign: i.Foreign}
	if d.Mountpoints == nil {
		d.Mountpoints = []string{}
	}
	d.MountpointsBytes = make([][]byte, len(d.Mountpoints))
	for n, dir := range d.Mountpoints {
		d.MountpointsBytes[n] = bytesOf(dir)
	}
	if d.Claims == nil {
		d.Claims = []string{}
	}
	if d.Attrs == nil {
		d.Attrs = map[string]string{}
	}
	return d
}

func (a *app) newInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "inspect NAME",
		Short: "Show a node as JSON",
		Long: `Shows one node as one JSON object: what ls --format json prints of it, and more; mountpointsBytes are to
mountpoints what mountpointBytes is to mountpoint. With --format table it is for people to read. An image's name
stands for its top layer.`,
		Example:           "  dmlayer inspect web1\n  dmlayer inspect --format '{{.Parent}}' web1",
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.onNode(cmd, args[0], func(ctx context.Context, s *layer.Store, name string) error {
				info, err := s.Inspect(ctx, name)
				if err != nil {
					return err
				}
				infos := []layer.Info{info}
				if !a.flags.quiet {
					if err := a.measure(ctx, s, infos); err != nil {
						return err
					}
				}
				d := newNodeDetails(infos[0])
				return printRecord(a, d, d.Name, true, a.nodeFields(d))
			})
		},
	}
	return records(exitCodes(cmd, 3, 7, 8))
}

func lossText(l *layer.Loss) string {
	if l == nil {
		return "nothing"
	}
	return l.String() + ", on " + l.Since.UTC().Format(time.DateTime)
}

func (a *app) nodeFields(d nodeDetails) []field {
	return []field{
		{"Name", d.Name},
		{"Kind", d.Kind},
		{"Parent", orDash(d.Parent)},
		{"State", d.State},
		{"Size", humanSize(d.Size)},
		{"Used", humanSizeOr(d.Used, "not known")},
		{"Exclusive", humanSizeOr(d.Exclusive, "not known")},
		{"File system", d.FS},
		{"Device", orDash(d.Device)},
		{"Mounted on", orDash(strings.Join(d.Mountpoints, ", "))},
		{"Claimed by", orDash(strings.Join(d.Claims, ", "))},
		{"Created", a.age(d.Created)},
		{"Labels", orDash(formatLabels(d.Labels))},
		{"Attributes", orDash(formatLabels(d.Attrs))},
		{"Written by strangers", strconv.FormatBool(d.Foreign)},
		{"Lost in a repair", lossText(d.Lost)},
	}
}
