package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// CheckOptions say how a pool is checked.
type CheckOptions struct {
	// Progress is told what is looked at next. nil tells nobody.
	Progress func(step string)
	// Mend is asked for each finding that needs a repair whether it may be mended. nil mends nothing. A finding that was mended is
	// not in the report. It is asked with the object's lock held.
	Mend func(Finding) bool
	// Adopt is asked for each orphan, before Mend, which name a node of it should have; "" is none. nil adopts none.
	Adopt func(Finding) string
}

// Check compares the records of a pool with what is in it, with the kernel's devices, loop devices and mounts, claims, links
// and side files, and its metadata with itself. It starts nothing, and changes nothing but what Mend allows. It can run at any time:
// what does not agree is looked at again, under the lock of whoever may be at work on it. Errors: ErrNotFound and
// those of looking; what is wrong with the pool is in the report.
//
// A pool that runs is read through a metadata snapshot, and needs a few blocks of free metadata for that. It takes as long as
// reading all of the metadata does; the start/stop lock is held shared meanwhile.
func Check(ctx context.Context, dirs Dirs, name string, o CheckOptions) (CheckReport, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	p, err := Open(ctx, dirs, name, nil)
	if errors.Is(err, errs.ErrDamaged) {
		f := NewFinding(FoundRecordsUnreadable, "pool "+name, "%v", err)
		if errors.Is(err, ErrMispaired) {
			f.Means, f.Do = "the record store is that of another pool, and is not read", errs.Hint(err)
		}
		return CheckReport{Pool: name, Findings: []Finding{f}}, nil
	}
	if err != nil {
		return CheckReport{}, err
	}
	defer p.Close()
	s, err := p.Hold(ctx)
	if err != nil {
		return CheckReport{}, err
	}
	defer s.Exit()
	c := checker{Session: s, o: o, report: CheckReport{Pool: name, UUID: p.UUID(), Findings: []Finding{}, Unchecked: []string{}}}
	if err := c.run(ctx); err != nil {
		return c.report, fmt.Errorf("check pool %q: %w", name, kernelError(err))
	}
	return c.report, nil
}

// checker is a Check with its locks.
type checker struct {
	*Session
	o       CheckOptions
	report  CheckReport
	running bool      // and it is ours
	lost    []Finding // of no thin id, that may be mended
	backing backing

	metadataName string // for people
	metadataSize int64  // bytes, of all that there is for it
}

func (c *checker) run(ctx context.Context) error {
	c.o.Progress("record store")
	problems, err := c.Records.Check(ctx)
	if err == nil {
		problems, err = c.mayReindex(ctx, problems)
	}
	if err != nil && !errors.Is(err, errs.ErrDamaged) {
		return err
	}
	if err != nil {
		c.report.Add(NewFinding(FoundRecordsUnreadable, c.Records.Path(), "%v", err))
		return nil
	}
	if c.addProblems(problems); c.report.Has(FoundRecordsPages, FoundRecordsRecord) {
		c.report.Unchecked = append(c.report.Unchecked, "all else: the records cannot be relied on")
		return nil
	}
	if err := c.checkPool(ctx); err != nil {
		return err
	}
	if c.report.Has(FoundElsewhere, FoundBackingMissing, FoundPoolSuspended) {
		c.report.Unchecked = append(c.report.Unchecked, "what is in the pool")
		return nil
	}
	return c.compareAll(ctx)
}

func (c *checker) addProblems(problems []metadata.Problem) {
	for _, p := range problems {
		c.report.Add(recordsFinding(p))
	}
}

func recordsFinding(p metadata.Problem) Finding {
	codes := map[string]string{
		metadata.ProblemPages: FoundRecordsPages, metadata.ProblemRecord: FoundRecordsRecord, metadata.ProblemIndex: FoundRecordsIndex,
		metadata.ProblemParent: FoundRecordsParent, metadata.ProblemDocument: FoundRecordsDocument,
	}
	return NewFinding(codes[p.Kind], p.Object, "%s", p.Text)
}

// checkPool looks at the pool as a whole: whether it runs, on what, and in which state.
func (c *checker) checkPool(ctx context.Context) error {
	c.o.Progress("backing")
	var err error
	if c.backing, err = c.p.backing(); err != nil {
		return err
	}
	_, c.metadataName = c.backing.names()
	err = c.look()
	switch {
	case errors.Is(err, errs.ErrDamaged):
		c.report.Add(NewFinding(FoundElsewhere, "pool "+c.p.files.name, "%v", err))
		return c.checkBacking(ctx)
	case errors.Is(err, devmapper.ErrNotFound):
		c.report.State = StateInactive
		if err := c.checkStopped(ctx); err != nil {
			return err
		}
		return c.checkBacking(ctx)
	case err != nil:
		return err
	}
	c.running, c.report.State = true, stateOf(c.Status)
	if err := c.checkBacking(ctx); err != nil {
		return err
	}
	c.checkState()
	if err := c.checkSuspended(); err != nil || c.report.Has(FoundPoolSuspended) {
		return err // whoever asks such a pool waits with the others
	}
	return c.checkPairing(ctx)
}

// checkStopped looks for what a start that died has left.
func (c *checker) checkStopped(ctx context.Context) error {
	if c.p.startDied() {
		c.report.Add(NewFinding(FoundStartDied, "pool "+c.p.files.name, "the mark %s is there", c.p.startMark()))
	}
	path, _, err := c.prepared(ctx)
	if err == nil && path != "" {
		c.report.Add(NewFinding(FoundPrepared, path, "what follows is about this metadata"))
	}
	return err
}

// checkState says what the kernel thinks of the pool.
func (c *checker) checkState() {
	codes := map[string]string{
		StateNeedsCheck: FoundNeedsCheck, StateReadOnly: FoundReadOnly, StateFailed: FoundFailed, StateOutOfDataSpace: FoundOutOfData,
	}
	code, ok := codes[c.report.State]
	switch st := c.Status; {
	case code == FoundOutOfData:
		c.report.Add(NewFinding(code, "pool "+c.p.files.name, "%d of %d blocks of data and %d of %d of metadata are in use",
			st.UsedData, st.TotalData, st.UsedMetadata, st.TotalMetadata))
	case ok:
		c.report.Add(NewFinding(code, "pool "+c.p.files.name, "%s", st))
	}
}

// checkBacking looks at what the pool lies on, and at the spare for the metadata. Whoever changes them has the start/stop lock.
func (c *checker) checkBacking(ctx context.Context) (err error) {
	list, err := c.backing.check(ctx, c.report.State != StateInactive)
	if err != nil {
		return err
	}
	if c.report.Add(list...); c.report.Has(FoundBackingMissing) {
		return nil
	}
	m, err := c.backing.open(ctx, false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	c.metadataSize = m.metadata.size
	whole, err := hasBlocks(c.p.files.spare(), c.metadataSize)
	if err == nil && !whole {
		c.lost = append(c.lost, NewFinding(FoundSpareMissing, c.p.files.spare(), "%d bytes", c.metadataSize))
	}
	return err
}

func (c *checker) checkSuspended() error {
	for _, suffix := range []string{suffixPool, suffixMetadata, suffixData} {
		info, err := c.p.dm.Info(devmapper.ByUUID(deviceUUID(c.p.record.UUID, suffix)))
		if suffix == suffixData && errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		if info.Suspended {
			c.report.Add(NewFinding(FoundPoolSuspended, "device "+string(info.Name), "suspended"))
		}
	}
	return nil
}

// checkPairing compares both sides as every open does.
func (c *checker) checkPairing(ctx context.Context) error {
	if c.report.State == StateFailed {
		c.report.Unchecked = append(c.report.Unchecked, "whether records and pool belong together: the pool does not tell any more")
		return nil
	}
	return c.withPoolLock(ctx, func() error {
		var r metadata.Pool
		err := c.Records.View(ctx, func(tx *metadata.Tx) (err error) {
			r, err = tx.Pool()
			return err
		})
		if err != nil {
			return err
		}
		st, err := c.Thin.Status()
		if err == nil {
			c.comparePairing(r, st.TransactionID)
		}
		return err
	})
}

func (c *checker) comparePairing(r metadata.Pool, transaction uint64) {
	object := "pool " + c.p.files.name
	switch {
	case transaction == r.TransactionID && !r.Pending:
	case transaction == r.TransactionID, r.Pending && transaction == previous(r):
		c.report.Add(NewFinding(FoundPairingBehind, object, "records: %#x, pool: %#x", r.TransactionID, transaction))
	default:
		c.report.Add(NewFinding(FoundPairing, object, "the records say transaction %#x, the pool %#x", r.TransactionID, transaction))
	}
}

// compareAll looks at everything, and again at what did not agree, with the locks in hand of all that nobody is at work
// on.
func (c *checker) compareAll(ctx context.Context) error {
	c.o.Progress("nodes, devices, mounts and claims")
	f, err := c.gather(ctx, c.running)
	if err != nil {
		return err
	}
	c.report.Nodes = len(f.nodes)
	if err := c.readMetadata(ctx, f, c.checkMetadata); err != nil {
		return err
	}
	c.report.Thins = len(f.thins)
	if err := c.mendOrReport(ctx, f, c.lost); err != nil {
		return err
	}
	first := f.lost()
	var suspects []metadata.ThinID
	for _, id := range f.ids() {
		if len(f.compare(id)) > 0 {
			suspects = append(suspects, id)
		}
	}
	if len(first)+len(suspects) == 0 {
		return nil
	}
	c.o.Progress("what did not agree, once more")
	return c.compareAgain(ctx, suspects, first)
}

func (c *checker) compareAgain(ctx context.Context, suspects []metadata.ThinID, lost []Finding) error {
	var locked []metadata.ThinID
	for _, id := range suspects {
		ok, err := c.TryLockID(id)
		if err != nil {
			return err
		}
		if !ok {
			c.report.Busy++
			continue
		}
		defer c.UnlockID(id)
		locked = append(locked, id)
	}
	f, err := c.gather(ctx, c.running)
	if err != nil {
		return err
	}
	if err := c.readMetadata(ctx, f, nil); err != nil {
		return err
	}
	if again := "which nodes the pool has, once more: its metadata could not be read"; !f.thinsKnown && len(c.report.Unchecked) == 0 {
		c.report.Unchecked = append(c.report.Unchecked, again)
	}
	var list []Finding
	for _, g := range f.lost() {
		if slices.ContainsFunc(lost, g.same) {
			list = append(list, g)
		}
	}
	for _, id := range locked {
		list = append(list, f.compare(id)...)
	}
	return c.mendOrReport(ctx, f, list)
}

// mendOrReport mends what may be mended. What cannot be stays found, with the reason.
func (c *checker) mendOrReport(ctx context.Context, f *facts, list []Finding) error {
	for _, g := range list {
		if adopted, err := c.mayAdopt(ctx, f, g); adopted {
			if err != nil {
				return err
			}
			continue
		}
		if c.o.Mend == nil || !g.Mendable() || !c.o.Mend(g) {
			c.report.Add(g)
			continue
		}
		if err := c.mend(ctx, f, g); err != nil {
			if ctx.Err() != nil {
				return err
			}
			g.Detail += "; not mended: " + err.Error()
			c.report.Add(g)
		}
	}
	return nil
}
