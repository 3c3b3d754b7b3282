package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/backend/containerd"
	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

type poolCheckOptions struct {
	name        string
	repair, yes bool

	adopt   []string          // ID=NAME
	deleted []string          // ids of orphans
	orphans map[uint64]string // what becomes of them: a name, or "" for nothing more
}

func (a *app) newPoolCheck() *cobra.Command {
	var o poolCheckOptions
	cmd := &cobra.Command{
		Use:   "check [NAME]",
		Short: "Compare a pool's records with what is there, and repair what differs",
		Long: `Compares the records of a pool with its thin devices, with the kernel's devices, loop devices and mounts,
with claims, links and side files, and its metadata with itself. Prints what differs: harmless,
mended-on-open (by the next command that uses the pool), needs-repair or needs-person; the last two
are exit code 7. It starts and changes nothing, and can run while the pool is in use: what somebody is at
work on is not counted. Of a stopped pool it sees more, the space maps of its metadata.

With --repair it mends what can be mended. Damaged metadata is repaired in a copy, in a spare
file: the pool is stopped for that, if nothing is in use; what each node would lose is shown; and the old
metadata is kept. Before any data is deleted or lost it asks; without a terminal to ask on, that is left as
it is unless --yes is given.

A thin device that no record names (orphan) is left alone: with --adopt it becomes a snapshot of that name,
marked as written by strangers, whose size is that of its file system; with --delete-orphan it is deleted,
after the same question.`,
		Example: `  dmlayer pool check
  dmlayer pool check --repair fast
  dmlayer pool check --repair --adopt 17=found --delete-orphan 18`,
		Args:              args(0, 1),
		ValidArgsFunction: a.completePools,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if o.name, err = a.poolArg(cmd, args); err != nil {
				return err
			}
			if o.yes && !o.repair {
				return usagef("pool check: --yes needs --repair")
			}
			if err := o.parseOrphans(); err != nil {
				return err
			}
			if err := a.needRoot(cmd); err != nil {
				return err
			}
			return a.runPoolCheck(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.repair, "repair", false, "mend what can be mended")
	f.BoolVarP(&o.yes, "yes", "y", false, "with --repair: delete and lose what it would ask about")
	f.StringArrayVar(&o.adopt, "adopt", nil, "with --repair: make the orphan `ID=NAME` a snapshot of that name (repeatable)")
	f.StringArrayVar(&o.deleted, "delete-orphan", nil, "with --repair: delete the orphan with that thin `ID` (repeatable)")
	return records(exitCodes(cmd, 3, 4, 5, 6, 7, 8))
}

// parseOrphans reads which orphans are to be adopted and deleted.
func (o *poolCheckOptions) parseOrphans() error {
	if len(o.adopt)+len(o.deleted) > 0 && !o.repair {
		return usagef("pool check: --adopt and --delete-orphan need --repair")
	}
	o.orphans = map[uint64]string{}
	add := func(text, name string) error {
		id, err := strconv.ParseUint(text, 10, 24)
		if err != nil || id == 0 {
			return usagef("pool check: %q is no thin id of an orphan", text)
		}
		if _, twice := o.orphans[id]; twice {
			return usagef("pool check: thin id %d is named twice", id)
		}
		o.orphans[id] = name
		return nil
	}
	for _, text := range o.adopt {
		id, name, _ := strings.Cut(text, "=")
		if err := pool.ValidateNodeName("node", name, nil); err != nil {
			return err
		}
		if err := add(id, name); err != nil {
			return err
		}
	}
	for _, id := range o.deleted {
		if err := add(id, ""); err != nil {
			return err
		}
	}
	return nil
}

// orphanName is the name that an orphan is to have, "" for none.
func (o *poolCheckOptions) orphanName(f pool.Finding) string {
	if f.ThinID == nil {
		return ""
	}
	return o.orphans[*f.ThinID]
}

// wanted tells whether a finding is to be mended at all: of orphans, only those that are named.
func (o *poolCheckOptions) wanted(f pool.Finding) bool {
	if !f.Mendable() {
		return false
	}
	if f.Code != pool.FoundOrphan {
		return true
	}
	_, named := o.orphans[*f.ThinID]
	return named
}

func (a *app) runPoolCheck(ctx context.Context, o poolCheckOptions) error {
	r, err := a.checkPool(ctx, o.name, pool.CheckOptions{})
	if err == nil && o.repair {
		r, err = a.repairPool(ctx, o, r)
	}
	if err != nil {
		return err
	}
	if err := a.printCheck(r); err != nil {
		return err
	}
	return r.Err()
}

// checkPool checks a pool and what is recorded of its images and of containerd's snapshots.
func (a *app) checkPool(ctx context.Context, name string, o pool.CheckOptions) (r pool.CheckReport, err error) {
	o.Progress = a.checkProgress()
	r, err = pool.Check(ctx, a.dirs(), name, o)
	if err != nil || r.Has(pool.FoundRecordsUnreadable, pool.FoundRecordsPages, pool.FoundRecordsRecord, pool.FoundRecordsDocument) {
		return r, err
	}
	s, err := layer.OpenRecords(ctx, layer.Config{Dirs: a.dirs(), Pool: name})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	problems, err := image.Check(ctx, s)
	for _, p := range problems {
		code := pool.FoundImageRecord
		if p.Layer != "" {
			code = pool.FoundSideMissing
		}
		f := pool.NewFinding(code, p.Object, "%s", p.Text)
		f.Node = p.Layer
		r.Add(f)
	}
	if err != nil {
		return r, err
	}
	damaged, err := containerd.Damaged(ctx, s)
	for key, err := range damaged {
		r.Add(pool.NewFinding(pool.FoundSnapshotRecord, fmt.Sprintf("snapshot %q", key), "%v", err))
	}
	return r, err
}

// checkProgress tells on standard error what is looked at, where somebody waits for it.
func (a *app) checkProgress() func(string) {
	if !isTerminal(a.err) {
		return nil
	}
	return func(step string) { a.note("checking: %s", step) }
}

// printCheck prints a report: the codes with --quiet.
func (a *app) printCheck(r pool.CheckReport) error {
	switch {
	case a.format.tmpl != nil:
		return a.printTemplate(r)
	case a.format.json:
		return a.printJSON(r)
	case a.flags.quiet:
		var b strings.Builder
		for _, f := range r.Findings {
			fmt.Fprintln(&b, f.Code)
		}
		return a.print(b.String())
	}
	for _, u := range r.Unchecked {
		a.note("not checked: %s", u)
	}
	if r.Busy > 0 {
		a.note("not counted: %s that somebody is at work on", count(r.Busy, "thin device"))
	}
	if len(r.Findings) == 0 {
		return a.println(fmt.Sprintf("pool %q: nothing found (%s, %s)", r.Pool, count(r.Nodes, "node"), count(r.Thins, "thin device")))
	}
	if err := a.printTable(func(w io.Writer) {
		fmt.Fprintln(w, "CLASS\tCODE\tOBJECT\tFOUND")
		for _, f := range r.Findings {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Class, f.Code, printable(f.Object), printable(f.Detail))
		}
	}); err != nil {
		return err
	}
	a.explain(r)
	return nil
}

// explain says once of each code what it means and what to do.
func (a *app) explain(r pool.CheckReport) {
	last := ""
	for _, f := range r.Findings {
		if f.Code == last {
			continue
		}
		last = f.Code
		text := f.Code + ": " + f.Means
		if f.Do != "" {
			text += "; to do: " + f.Do
		}
		a.note("%s", text)
	}
}
