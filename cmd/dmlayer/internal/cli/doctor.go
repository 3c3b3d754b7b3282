package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/pool"
)

// The results of a check.
const (
	checkOK   = "ok"
	checkWarn = "warn" // works, with less
	checkFail = "fail" // dmlayer cannot work
)

// checkRecord is one line of doctor.
type checkRecord struct {
	Check  string `json:"check"`
	Status string `json:"status"`
	Detail string `json:"detail"`
	Advice string `json:"advice"`
}

func (a *app) newDoctor() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Check whether this machine can run dmlayer",
		Long: `Checks the kernel, its device-mapper and file systems, the tools, the directories and the pools, and
says what to do about what is missing. Changes nothing, except that the kernel may load modules.
Exits with 8 where something that dmlayer cannot do without is missing.`,
		Example: "  dmlayer doctor\n  dmlayer doctor --format json",
		GroupID: groupHelp,
		Args:    args(0, 0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runDoctor(a.examine(cmd.Context(), systemPlaces))
		},
	}
	return records(exitCodes(cmd, 8))
}

// runDoctor prints the checks.
func (a *app) runDoctor(checks []checkRecord) error {
	if err := a.printChecks(checks); err != nil {
		return err
	}
	for _, c := range checks {
		if c.Status == checkFail {
			return errs.WithHint(fmt.Errorf("doctor: %s: %s: %w", c.Check, c.Detail, errs.ErrUnsupported), c.Advice)
		}
	}
	return nil
}

func (a *app) printChecks(checks []checkRecord) error {
	if a.format.tmpl != nil || a.format.json || a.format.table || a.flags.quiet {
		return printList(a, checks, func(c checkRecord) string { return c.Check }, []column[checkRecord]{
			{"CHECK", func(c checkRecord) string { return c.Check }},
			{"STATUS", func(c checkRecord) string { return c.Status }},
			{"DETAIL", func(c checkRecord) string { return c.Detail }},
			{"ADVICE", func(c checkRecord) string { return orDash(c.Advice) }},
		})
	}
	for _, c := range checks {
		text := fmt.Sprintf("%-4s  %s: %s", c.Status, c.Check, c.Detail)
		if c.Advice != "" {
			text += "\n      -> " + c.Advice
		}
		if err := a.println(text); err != nil {
			return err
		}
	}
	return nil
}

// examine makes all checks.
func (a *app) examine(ctx context.Context, at places) []checkRecord {
	checks := []checkRecord{
		checkRoot(a.euid()),
		checkKernel(kernelRelease()),
	}
	checks = append(checks, checkDeviceMapper()...)
	checks = append(checks, at.checkLoop())
	checks = append(checks, at.checkFileSystems()...)
	checks = append(checks, checkTools(run.Look)...)
	checks = append(checks, at.checkUdev())
	checks = append(checks, checkRootDir(a.flags.root), checkRunDir(a.flags.run))
	return append(checks, a.checkPools(ctx)...)
}

// tools are the programs that dmlayer may start, and what for.
var tools = []struct{ name, purpose string }{
	{"mkfs.ext4", "makes the file systems of ext4 pools, the default"},
	{"e2fsck", "checks ext4"},
	{"resize2fs", "grows ext4 that is not mounted"},
	{"mkfs.xfs", "makes the file systems of xfs pools"},
	{"xfs_repair", "checks xfs"},
	{"lvm", "makes, activates and grows pools on volume groups (pool create --vg, --device)"},
}

// checkTools looks for the tools. A pool can be made with either mkfs, so only the lack of both fails.
func checkTools(look func(string) (string, error)) []checkRecord {
	var checks []checkRecord
	canMake := false
	for _, t := range tools {
		path, err := look(t.name)
		if err != nil {
			checks = append(checks, checkRecord{t.name, checkWarn, "not found; it " + t.purpose, errs.Hint(err)})
			continue
		}
		canMake = canMake || strings.HasPrefix(t.name, "mkfs.")
		checks = append(checks, checkRecord{t.name, checkOK, path, ""})
	}
	if !canMake {
		checks[0].Status = checkFail
	}
	return checks
}

func (a *app) checkPools(ctx context.Context) []checkRecord {
	if a.euid() != 0 {
		return nil // checkRoot has said it
	}
	names, err := pool.List(ctx, a.dirs())
	if err != nil {
		return []checkRecord{{"pools", checkWarn, err.Error(), errs.Hint(err)}}
	}
	if len(names) == 0 {
		return []checkRecord{{"pools", checkOK, "none yet", "dmlayer pool create makes one"}}
	}
	var checks []checkRecord
	for _, name := range names {
		p, err := pool.Inspect(ctx, a.dirs(), name)
		if errors.Is(err, errs.ErrNotFound) {
			continue
		}
		checks = append(checks, checkPool(name, p, err))
		if err == nil {
			checks = append(checks, checkPoolSpace(name, p)...)
		}
	}
	return checks
}

// The share of a pool from which on doctor warns.
const fullPercent = 80

func checkPool(name string, p pool.Status, err error) checkRecord {
	c := checkRecord{Check: "pool " + name, Status: checkWarn}
	if err != nil {
		c.Detail, c.Advice = err.Error(), errs.Hint(err)
		return c
	}
	c.Detail = p.State
	if p.DataUsed != nil {
		c.Detail += ", data " + used(p.DataUsed, p.DataTotal) + ", metadata " + used(p.MetadataUsed, p.MetadataTotal)
	}
	switch {
	case p.State == pool.StateOutOfDataSpace:
		c.Advice = "make it larger (dmlayer pool extend), or remove nodes: dmlayer rm, dmlayer prune, dmlayer image rm"
	case p.State == pool.StateReadOnly, p.State == pool.StateFailed, p.State == pool.StateNeedsCheck:
		c.Advice = "see the kernel's log (dmesg); stop the pool and check its metadata before it is used again"
	case fuller(p.DataUsed, p.DataTotal), fuller(p.MetadataUsed, p.MetadataTotal):
		c.Advice = "nearly full: dmlayer prune removes layers that nothing uses"
	case p.Life().Aged():
		c.Advice = fmt.Sprintf("%s: %s", p.Life(), p.Life().Advice(name))
	default:
		c.Status = checkOK
	}
	return c
}

func fuller(part, total *int64) bool {
	return part != nil && total != nil && *total > 0 && float64(*part) > float64(*total)*fullPercent/100
}
