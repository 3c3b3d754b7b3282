package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// repairPool mends what can be mended, and returns what is left. Data is only lost when somebody says so.
func (a *app) repairPool(ctx context.Context, o poolCheckOptions, r pool.CheckReport) (pool.CheckReport, error) {
	if r.Has(pool.FoundRecordsIndex) { // before anybody goes by them
		var err error
		r, err = a.checkPool(ctx, o.name, pool.CheckOptions{Mend: func(f pool.Finding) bool {
			if f.Code == pool.FoundRecordsIndex {
				a.noteMending(f)
			}
			return f.Code == pool.FoundRecordsIndex
		}})
		if err != nil {
			return r, err
		}
	}
	if r.Has(pool.FoundRecordsUnreadable, pool.FoundRecordsPages, pool.FoundRecordsRecord, pool.FoundRecordsIndex,
		pool.FoundPairing, pool.FoundElsewhere, pool.FoundBackingMissing, pool.FoundBackingSize, pool.FoundMetadataForeign) {
		return r, nil // what is here may not belong together
	}
	if r.MetadataDamaged() {
		if err := a.repairMetadata(ctx, o); err != nil {
			return r, err
		}
	}
	// Opening mends what it can, and has the pool running.
	s, err := layer.Open(ctx, layer.Config{Dirs: a.dirs(), Pool: o.name, Logger: a.logger()})
	if err != nil {
		return r, err
	}
	if err := s.Close(); err != nil {
		return r, err
	}
	if r, err = a.checkPool(ctx, o.name, pool.CheckOptions{}); err != nil {
		return r, err
	}
	if err := o.checkOrphans(r); err != nil {
		return r, err
	}
	mend, err := a.mayMend(r, o)
	if err != nil || mend == nil {
		return r, err
	}
	return a.checkPool(ctx, o.name, pool.CheckOptions{Mend: mend, Adopt: func(f pool.Finding) string {
		name := o.orphanName(f)
		if name != "" {
			a.note("adopting: %s as %q", f.Object, name)
		}
		return name
	}})
}

// checkOrphans is ErrNotFound where an id was named that no orphan has.
func (o *poolCheckOptions) checkOrphans(r pool.CheckReport) error {
	for id := range o.orphans {
		if !slices.ContainsFunc(r.Findings, func(f pool.Finding) bool { return f.Code == pool.FoundOrphan && *f.ThinID == id }) {
			err := fmt.Errorf("pool check: thin device %d is no orphan: %w", id, errs.ErrNotFound)
			return errs.WithHint(err, "dmlayer pool check "+o.name+" says which there are")
		}
	}
	return nil
}

// mayMend asks about what loses data, and returns what is to be mended; nil is nothing.
func (a *app) mayMend(r pool.CheckReport, o poolCheckOptions) (func(pool.Finding) bool, error) {
	mendable, yes := false, o.yes
	var lost []pool.Finding
	for _, f := range r.Findings {
		mendable = mendable || o.wanted(f)
		if o.wanted(f) && f.Loses && o.orphanName(f) == "" {
			lost = append(lost, f)
		}
	}
	if !mendable {
		return nil, nil
	}
	if len(lost) > 0 && !yes {
		for _, f := range lost {
			a.note("would be deleted: %s, %s", f.Object, f.Detail)
		}
		var err error
		if yes, err = a.confirmed(r.Pool, fmt.Sprintf("%s will be deleted for ever", count(len(lost), "object"))); err != nil {
			return nil, err
		}
	}
	return func(f pool.Finding) bool {
		if !o.wanted(f) || f.Loses && !yes {
			return false
		}
		a.noteMending(f)
		return true
	}, nil
}

func (a *app) noteMending(f pool.Finding) { a.note("mending: %s of %s", f.Code, f.Object) }

// repairMetadata has the pool's metadata repaired, and says what that costs.
func (a *app) repairMetadata(ctx context.Context, o poolCheckOptions) error {
	r, err := pool.RepairMetadata(ctx, a.dirs(), o.name, pool.RepairOptions{
		Progress: a.checkProgress(),
		Confirm:  func(r pool.RepairReport) error { return a.mayRepair(r, o.yes) },
	})
	if r.Old != "" {
		a.note("the old metadata is kept as %s", r.Old)
	}
	return err
}

func (a *app) mayRepair(r pool.RepairReport, yes bool) error {
	if r.Sound {
		a.note("thin_check finds no damage")
	}
	if r.BadBlocks > 0 {
		a.note("%s of the metadata cannot be read from the disk", count(r.BadBlocks, "block"))
	}
	if r.Unreadable != "" {
		a.note("what was in the old metadata cannot be told: %s", r.Unreadable)
	}
	for _, l := range r.Losses {
		a.note("would be lost: %s", l)
	}
	if r.MetadataSize > 0 {
		a.note("the metadata becomes %s large: what is repaired does not fit into less", humanSize(r.MetadataSize))
	}
	if len(r.Appeared) > 0 {
		a.note("thin devices that appear again: %v", r.Appeared)
	}
	if r.Label {
		a.note("the pool's label is lost, and is made again of the records: nothing else says that the data is this pool's")
	}
	if yes || len(r.Losses) == 0 && r.Unreadable == "" && !r.Label {
		return nil
	}
	ok, err := a.confirmed(r.Pool, fmt.Sprintf("%s will lose what cannot be read any more", count(len(r.Losses), "node")))
	if err == nil && !ok {
		err = errs.WithHint(fmt.Errorf("repair pool %q: not confirmed, the metadata is as it was: %w", r.Pool, errs.ErrDamaged),
			"dmlayer pool check --repair --yes "+r.Pool+" repairs it without asking")
	}
	return err
}

// confirmed asks, and takes nothing but the pool's name for a yes. Without a terminal nobody is asked.
func (a *app) confirmed(name, what string) (bool, error) {
	if !isTerminal(a.in) {
		return false, nil
	}
	fmt.Fprintf(a.err, "%s. Type the pool's name to go on: ", what)
	answer, err := bufio.NewReader(a.in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("read the answer: %w", err)
	}
	return strings.TrimSpace(answer) == name, nil
}
