package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/pool"
)

func (a *app) newPoolLs() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List pools",
		Long:    "Lists the pools under the root directory. Starts none of them.",
		Example: `  dmlayer pool ls
  dmlayer pool ls --format '{{.Name}} {{.State}}'`,
		Args: args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.needRoot(cmd); err != nil {
				return err
			}
			return a.runPoolLs(cmd.Context())
		},
	}
	return records(exitCodes(cmd, 7, 8))
}

func (a *app) runPoolLs(ctx context.Context) error {
	names, err := pool.List(ctx, a.dirs())
	if err != nil {
		return err
	}
	var pools []pool.Status
	failed := forEach(ctx, names, func(name string) error {
		p, err := pool.Inspect(ctx, a.dirs(), name)
		if errors.Is(err, errs.ErrNotFound) {
			return nil // destroyed since it was listed
		}
		if err == nil {
			pools = append(pools, poolRecord(p))
		}
		return err
	})
	err = printList(a, pools, func(p pool.Status) string { return p.Name }, []column[pool.Status]{
		{"NAME", func(p pool.Status) string { return p.Name }},
		{"STATE", func(p pool.Status) string { return p.State }},
		{"BACKING", func(p pool.Status) string { return p.Backing }},
		{"FS", func(p pool.Status) string { return p.FS }},
		{"DATA", func(p pool.Status) string { return humanSizeOr(p.DataTotal, "-") }},
		{"USED", func(p pool.Status) string { return used(p.DataUsed, p.DataTotal) }},
		{"METADATA USED", func(p pool.Status) string { return used(p.MetadataUsed, p.MetadataTotal) }},
		{"LAYERS", func(p pool.Status) string { return strconv.Itoa(p.Layers) }},
		{"SNAPSHOTS", func(p pool.Status) string { return strconv.Itoa(p.Snapshots) }},
	})
	if failed != nil {
		return failed
	}
	return err
}

func (a *app) newPoolInspect() *cobra.Command {
	return a.poolShow("inspect", "Show a pool as JSON", `Shows one pool as one JSON object. Does not start it: what only a running pool knows is null.`,
		"  dmlayer pool inspect\n  dmlayer pool inspect --format '{{size .DataUsed}}' fast", true)
}

func (a *app) newPoolStatus() *cobra.Command {
	return a.poolShow("status", "Show a pool's state and how full it is", `Shows one pool for people to read. Does not start it.`,
		"  dmlayer pool status\n  dmlayer pool status fast", false)
}

func (a *app) poolShow(verb, short, long, example string, asJSON bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:               verb + " [NAME]",
		Short:             short,
		Long:              long,
		Example:           example,
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: a.onPool(func(cmd *cobra.Command, name string) error {
			p, err := pool.Inspect(cmd.Context(), a.dirs(), name)
			if err != nil {
				return err
			}
			return printRecord(a, poolRecord(p), p.Name, asJSON, poolFields(p))
		}),
	}
	return records(exitCodes(cmd, 3, 7, 8))
}

// poolRecord is a pool as JSON shows it: an empty list is [].
func poolRecord(p pool.Status) pool.Status {
	if p.MkfsOptions == nil {
		p.MkfsOptions = []string{}
	}
	if p.MountOptions == nil {
		p.MountOptions = []string{}
	}
	return p
}

func poolFields(p pool.Status) []field {
	fields := []field{
		{"Name", p.Name},
		{"State", p.State + stateAdvice(p)},
		{"UUID", p.UUID},
		{"Backing", p.Backing},
		{"Data", usedOf(p.DataUsed, p.DataTotal)},
		{"Metadata", usedOf(p.MetadataUsed, p.MetadataTotal)},
	}
	return append(append(fields, spaceFields(p)...), []field{
		{"Layers", strconv.Itoa(p.Layers)},
		{"Snapshots", strconv.Itoa(p.Snapshots)},
		{"Volumes", strconv.Itoa(p.Volumes)},
		{"File system", p.FS},
		{"Base size", humanSize(p.BaseSize)},
		{"Block size", humanSize(p.BlockSize)},
		{"Device nodes", deviceNodes(p)},
		{"Snapshots taken", countOf(p.SnapshotsTaken, p.SnapshotLimit)},
		{"Thin ids taken", countOf(&p.IDsTaken, p.IDLimit)},
		{"Data device", orDash(p.DataDevice)},
		{"Metadata device", orDash(p.MetadataDevice)},
		{"Records backed up", lastBackup(p)},
	}...)
}

func lastBackup(p pool.Status) string {
	if p.LastBackup == nil {
		return "never"
	}
	return fmt.Sprintf("%s (%s)", p.LastBackup.Local().Format(time.DateTime), count(p.Backups, "backup"))
}

// stateAdvice says what a state means where its name does not.
func stateAdvice(p pool.Status) string {
	const toDo = "dmlayer pool check says more, and with --repair has it repaired"
	switch p.State {
	case pool.StateReadOnly:
		return " (what is there can be read; the metadata is full or could not be written; " + toDo + ")"
	case pool.StateOutOfDataSpace:
		return " (writes fail; make it larger with dmlayer pool extend, or remove nodes)"
	case pool.StateFailed:
		return " (nothing works; " + toDo + ")"
	case pool.StateNeedsCheck:
		return " (what is there can be read; " + toDo + ")"
	}
	return ""
}

func usedOf(part, total *int64) string {
	if part == nil || total == nil {
		return "not known while the pool is not active"
	}
	return fmt.Sprintf("%s of %s", used(part, total), humanSize(*total))
}

func countOf(n *uint64, of uint64) string {
	if n == nil {
		return "-"
	}
	return fmt.Sprintf("%d of %d", *n, of)
}

// deviceNodes says whether the layers of archives may bring device nodes.
func deviceNodes(p pool.Status) string {
	if p.ForbidDevices {
		return "forbidden"
	}
	return "allowed"
}
