package thinmeta

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrNoRoom is returned by [Repair] where what is left of the metadata does not
// fit into it any more.
var ErrNoRoom = errors.New("metadata has no room")

// RepairOptions say what is known besides the metadata. The zero value knows
// nothing.
type RepairOptions struct {
	// DataBlocks and MetadataBlocks are how many blocks the two devices have.
	// They are used where what the superblock says cannot be.
	DataBlocks, MetadataBlocks uint64
	// MoreMetadata has the metadata take all MetadataBlocks, where it had fewer:
	// for what has not fitted otherwise.
	MoreMetadata bool
	// Made are the transactions in which devices were made, for those of which
	// the metadata has lost that.
	Made map[uint64]uint64
}

// Repaired is what [Repair] has made.
type Repaired struct {
	Super Superblock
	// Devices are all that the metadata named, by their ids.
	Devices []RepairedDevice
	// Err joins what could not be read, as a [*Damage] each: at most 1000.
	Err error
}

// RepairedDevice is what has become of a device.
type RepairedDevice struct {
	ID     uint64
	Mapped uint64 // blocks that it has now
	Had    uint64 // blocks that it had, as its details say, which may be wrong; 0 where those are lost
	// Gone says that nothing is left of it, not even its name.
	Gone bool
	// Remade says that what the pool knew of it besides its mappings was lost.
	// The kernel holds all that it has for shared then, which is safe.
	Remade bool
	// Unproven says that the block of the device tree is lost that led to its
	// mappings, that these are what an earlier one led to, and that they have the
	// right number: they are likely its own, and may be another's.
	Unproven bool
	// Lost are the ranges of which nothing is known any more, at most 1000. Which
	// blocks in them it had cannot be told, but that it had some in each.
	Lost []Range
}

// Range is from First to Last, both included.
type Range struct{ First, Last uint64 }

// Repair rewrites the metadata of a pool that is not active, in place, so that
// it is in order: mappings that cannot be read are dropped, device tree and
// details are made anew of what can be read of them, and both space maps of the
// references that there are. Nodes of mappings stay at their places, and what
// devices share stays shared, so that it fits wherever the pool did, but for
// rare cases (ErrNoRoom, MoreMetadata). A metadata snapshot is dropped, the kernel's mark that asks for a check taken away. The
// transaction stays.
//
// Do it on a copy: when it fails, or the machine does, half of it has been
// done. It needs memory as [Metadata.Check] does, twice, and some for each
// device.
//
// The error is that of [Open], [ErrDamaged] where no device is left, ErrNoRoom,
// the context's, or what reading and writing gave.
func Repair(ctx context.Context, f Storage, o RepairOptions) (Repaired, error) {
	m, err := Open(f, Options{})
	if err != nil {
		return Repaired{}, err
	}
	r := mender{
		ctx: ctx, m: m, f: f, o: o, nodes: map[uint64]*mended{}, spans: map[uint64][]Range{}, fixed: map[uint64]bool{}, unproven: map[uint64]bool{},
		joined: map[[3]uint64][]kid{}, cut: map[[2]uint64]uint64{},
	}
	err = r.measure()
	if err == nil {
		err = r.run()
	}
	if err != nil {
		return Repaired{}, fmt.Errorf("thinmeta: repair: %w", err)
	}
	super, err := ReadSuperblock(f)
	return Repaired{Super: super, Devices: r.report, Err: r.lost.join()}, err
}

// mender is a Repair.
type mender struct {
	ctx context.Context
	m   *Metadata // as it was
	f   Storage
	o   RepairOptions

	blocks    uint64 // of metadata
	dataLimit uint64 // mappings lead below it
	data      uint64 // blocks
	time      uint32 // the pool's: the superblock is committed last, so that nothing is of a later one
	late      bool   // something was of a later one
	reshared  bool   // some mappings have been made to count as shared

	details map[uint64]Device
	roots   []deviceRoot
	fixed   map[uint64]bool // blocks of the trees that are made anew
	// unproven are devices that may have another's mappings.
	unproven map[uint64]bool
	nodes    map[uint64]*mended
	spans    map[uint64][]Range // what is lost below nodes
	used     blockStates        // blocks that the trees refer to, and those that more than one node does
	limits   map[uint64]uint64  // last keys that nodes may have below them, at whatever place
	joined   map[[3]uint64][]kid
	cut      map[[2]uint64]uint64
	free     []uint64 // blocks that are not needed any more
	next     uint64   // block that may be free
	lost     errorList
	report   []RepairedDevice
}

// measure finds out how large the pool is.
func (r *mender) measure() error {
	s := r.m.super
	r.blocks = s.MetadataSpace.Blocks
	if have := r.o.MetadataBlocks; have > 0 && (r.blocks == 0 || r.blocks > have) {
		r.blocks = have
	}
	if r.o.MoreMetadata {
		r.blocks = max(r.blocks, r.o.MetadataBlocks)
	}
	r.blocks = min(r.blocks, blockLimit)
	r.data = s.DataSpace.Blocks
	if r.data/bitmapEntries >= r.blocks { // its bitmaps would not fit
		if r.data = r.o.DataBlocks; r.data == 0 || r.data/bitmapEntries >= r.blocks {
			return fmt.Errorf("%d data blocks and %d of metadata: %w", s.DataSpace.Blocks, r.blocks, ErrNoRoom)
		}
	}
	r.dataLimit = max(r.data, r.o.DataBlocks)
	r.time = s.Time
	return nil
}

func (r *mender) run() error {
	if err := r.readDevices(); err != nil {
		return err
	}
	if err := r.mendDevices(); err != nil {
		return err
	}
	if len(r.roots) == 0 {
		return fmt.Errorf("no device can be read: %w", errors.Join(ErrDamaged, r.lost.join()))
	}
	b := builder{mender: r}
	return b.run()
}

// readDevices reads the trees that are made anew, and remembers where they were: what is found there is no mapping.
func (r *mender) readDevices() error {
	r.details = map[uint64]Device{}
	details := listReader{r: r, leaf: func(n node) {
		for i := range n.n {
			d := Device{ID: n.key(i)}
			d.setDetails(item{leaf: n, i: i})
			r.late = r.late || max(d.CreationTime, d.SnapshotTime) > r.time
			d.CreationTime, d.SnapshotTime = min(d.CreationTime, r.time), min(d.SnapshotTime, r.time)
			r.details[d.ID] = d
		}
	}}
	roots := listReader{r: r, leaf: func(n node) {
		for i := range n.n {
			id := n.key(i)
			r.roots = append(r.roots, deviceRoot{id, n.uint64(i), place{tree: mappingTree, device: id, last: maxKey}})
		}
	}}
	if err := roots.read(r.m.super.MappingRoot, deviceTree); err != nil {
		return err
	}
	if err := details.read(r.m.super.DetailsRoot, detailsTree); err != nil || !roots.damaged {
		return err
	}
	return r.find()
}

// listReader reads a tree that belongs to no device, in order.
type listReader struct {
	r       *mender
	leaf    func(n node)
	damaged bool
}

func (l *listReader) read(root uint64, tree treeType) error {
	w := walker{m: l.r.m, ctx: l.r.ctx, v: l}
	_, err := w.walk(root, tree, 0)
	return err
}

func (l *listReader) reference(block uint64, at place) (bool, uint64) {
	if slices.Contains(at.above, block) {
		return true, 0 // where it is refused
	}
	if err := l.r.inRange(block); err != nil {
		l.lost(at.damage(block, err))
		return false, 0
	}
	if l.r.fixed[block] {
		l.lost(at.damage(block, fmt.Errorf("block is elsewhere as well: %w", ErrMismatch)))
		return false, 0
	}
	return true, 0
}

func (l *listReader) node(n node, _ place) {
	l.r.fixed[n.block] = true
	if n.leaf {
		l.leaf(n)
	}
}

func (l *listReader) lost(d *Damage) {
	l.damaged = true
	l.r.lost.add(d)
}

func (l *listReader) done(uint64, uint64) {}

// inRange is ErrRange for what is no block of a tree for sure.
func (r *mender) inRange(block uint64) error {
	if block == 0 || block >= r.blocks {
		return fmt.Errorf("there are %d blocks: %w", r.blocks, ErrRange)
	}
	return nil
}

// mendDevices mends the mappings of all devices, and keeps those of which there are any.
func (r *mender) mendDevices() error {
	if err := r.survey(); err != nil {
		return err
	}
	kept := r.roots[:0]
	named := maps.Clone(r.details)
	for _, d := range r.roots {
		delete(named, d.id)
		device := RepairedDevice{ID: d.id}
		root, lost, err := r.mendRoot(d.root, d.at)
		if err != nil {
			return err
		}
		if device.Gone = root == 0; device.Gone {
			device.Lost = []Range{{0, maxKey}}
		} else {
			device.Lost = lost
			d.root = root
			kept = append(kept, d)
		}
		was, known := r.details[d.id]
		device.Had = was.MappedBlocks
		device.Remade = !known && !device.Gone
		device.Unproven = r.unproven[d.id] && !device.Gone
		r.report = append(r.report, device)
	}
	for id := range named {
		r.report = append(r.report, RepairedDevice{ID: id, Gone: true, Lost: []Range{{0, maxKey}}})
	}
	slices.SortFunc(r.report, func(a, b RepairedDevice) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	r.roots = kept
	return nil
}
