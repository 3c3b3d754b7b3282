package pool

import (
	"cmp"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/dmlayer/dmlayer/metadata"
)

// ImportReport says what a pool is imported with, and how that differs from what is in the pool.
type ImportReport struct {
	Name, UUID string
	Source     string // where the records are taken from
	Taken      time.Time
	Nodes      int      // recorded: layers, snapshots and volumes
	Unusable   []string // copies of the records that are damaged or another pool's, and why

	// The transaction ids of the copy and of the pool. The pool's is raised at each start and with each window of
	// thin ids.
	CopyTransaction, PoolTransaction uint64

	Missing []MissingNode // recorded, and not in the pool
	Orphans []Orphan      // in the pool, and not recorded: they are kept
	// Hook is the program that the records have serve start, and that is left out as they come from elsewhere.
	Hook string
	// MkfsOptions and MountOptions are left out for the same reason: they name files and devices of the host.
	MkfsOptions, MountOptions []string
	// SideFiles tells whether the folder has side files. Without them, the tars of image layers cannot be made again.
	SideFiles bool
	// NotCopied says why the records were not copied in the end, as stop does: the host or the pool may be full. nil is that they were.
	NotCopied error
}

// MissingNode is a node that the copy has and the pool has not.
type MissingNode struct {
	Name string
	Kind metadata.Kind
	ID   metadata.ThinID
}

// Orphan is a thin device that no record names.
type Orphan struct {
	ID          metadata.ThinID
	Bytes       int64  // mapped, shared with others or not
	Transaction uint64 // the pool's when it was made
}

// Differs tells whether the pool has what the copy does not know, or the other way round.
func (r ImportReport) Differs() bool { return len(r.Missing)+len(r.Orphans) > 0 }

// plan is what an import is going to do.
type plan struct {
	records *metadata.Copy // of the store to be made
	report  ImportReport
	paired  bool // the records are the folder's own and belong to the pool: nothing is to be done but a change of place
}

// plan compares the newest copy with the pool.
func (l *folder) plan(name string) (plan, error) {
	c := l.copies[0]
	p := plan{records: new(metadata.Copy), paired: c.own && c.pairs(l.super.TransactionID)}
	*p.records = *c.Copy
	p.records.Version = l.latest // the new store's is above it: by that it is known to be newer than any copy
	p.report = ImportReport{
		Name: name, UUID: c.Pool.UUID, Source: c.source, Taken: c.Taken, Unusable: l.unusable,
		CopyTransaction: c.Pool.TransactionID, PoolTransaction: l.super.TransactionID,
	}
	if entries, err := os.ReadDir(l.files.blobs()); err == nil {
		p.report.SideFiles = len(entries) > 0
	}
	named := l.compareNodes(&p)
	p.records.Tombstones = slices.DeleteFunc(slices.Clone(c.Tombstones), func(t metadata.Tombstone) bool {
		named[t.ID] = true
		_, there := l.devices[t.ID]
		return !there
	})
	if err := l.renew(&p, name); err != nil {
		return p, err
	}
	p.report.Orphans = l.orphans(named, p.records.Pool)
	return p, nil
}

// compareNodes finds the nodes that are not in the pool any more, and returns the ids of all. Their records stay: what a
// person knew is not thrown away. A template gets another name, so that one is made when it is needed.
func (l *folder) compareNodes(p *plan) map[metadata.ThinID]bool {
	named := map[metadata.ThinID]bool{labelID: true}
	p.records.Nodes = slices.Clone(p.records.Nodes)
	for i, n := range p.records.Nodes {
		named[n.ID] = true
		_, there := l.devices[n.ID]
		switch {
		case n.Kind != metadata.KindTemplate:
			p.report.Nodes++
			if !there {
				p.report.Missing = append(p.report.Missing, MissingNode{n.Name, n.Kind, n.ID})
			}
		case !there:
			p.records.Nodes[i].Name = asideName(n.ID)
		}
	}
	return named
}

// renew makes the pool's record of the copy's: a new tag, so that no store from before is taken for this one, and a
// window of thin ids above all that there is, so that recovery takes nothing for what a crash left. Only records
// that belong to the pool know what a crash left.
func (l *folder) renew(p *plan, name string) error {
	r := &p.records.Pool
	r.Name, r.State = name, metadata.PoolReady
	above := max(slices.Max(slices.Collect(maps.Keys(l.devices)))+1, r.HighID)
	for _, n := range p.records.Nodes {
		above = max(above, n.ID+1, metadata.ThinID(n.Key)+1)
	}
	if !p.paired || above > r.HighID {
		r.LowID, r.HighID = above, above
	}
	// A pool may have grown since the copy was made.
	r.Backing.DataSize, r.Backing.MetadataSize = l.sizes[0], l.sizes[1]
	r.Backing.MetadataHeld = heldWithin(r.Backing.MetadataHeld, l.sizes[1], l.super)
	r.SnapshotsTaken = max(r.SnapshotsTaken, uint64(l.super.Time))
	r.ImportedFrom, r.Pending = l.super.TransactionID, true
	for {
		id, err := newTransactionID()
		if err != nil {
			return err
		}
		if r.TransactionID = id; id>>tagBits != l.super.TransactionID>>tagBits {
			return nil
		}
	}
}

// orphans returns the devices that nothing names and that recovery is not going to clean up.
func (l *folder) orphans(named map[metadata.ThinID]bool, r metadata.Pool) []Orphan {
	var list []Orphan
	for id, d := range l.devices {
		if inFlight := id >= r.LowID && id < r.HighID; !named[id] && !inFlight {
			list = append(list, Orphan{ID: id, Bytes: int64(d.MappedBlocks) * r.BlockSize, Transaction: d.TransactionID})
		}
	}
	slices.SortFunc(list, func(a, b Orphan) int { return cmp.Compare(a.ID, b.ID) })
	return list
}
