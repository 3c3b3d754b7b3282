package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
	"iter"
)

// Device is a thin device as the pool knows it.
type Device struct {
	// ID is below 2^24 where the kernel made it.
	ID uint64
	// Root is the metadata block where its mappings begin.
	Root uint64
	// MappedBlocks counts the data blocks that it has, shared ones included. It
	// is the kernel's own count, which may be wrong after a transaction that
	// was given up; [Metadata.Usage] counts.
	MappedBlocks uint64
	// TransactionID is the pool's when the device was made.
	TransactionID uint64
	// CreationTime and SnapshotTime are of the pool's clock, which counts
	// snapshots: when the device was made, and last had a snapshot taken of it
	// or was one. What was mapped before SnapshotTime may be shared.
	CreationTime, SnapshotTime uint32
}

// MayShare tells whether the kernel holds a mapping of the device for shared.
// If not, the blocks are the device's own, and no other device has to be looked
// at to know. If so, they may still be: the kernel forgets no snapshot.
func (d Device) MayShare(m Mapping) bool { return m.Time < d.SnapshotTime }

// Devices goes through the devices by their ids.
//
// An error is a [*Damage], after which it goes on, or the context's, which is
// the last. Together with a device that has an id, it says that one half of it
// is missing: a device without details can still be read, a device without
// Root cannot. Details that damage hides are zero.
func (m *Metadata) Devices(ctx context.Context) iter.Seq2[Device, error] {
	return func(yield func(Device, error) bool) {
		l := deviceLister{
			ctx: ctx, yield: yield,
			roots:   side{cursor: m.cursor(m.super.MappingRoot, deviceTree, 0)},
			details: side{cursor: m.cursor(m.super.DetailsRoot, detailsTree, 0)},
		}
		l.run()
	}
}

// side is one of the two trees that know the devices.
type side struct {
	*cursor
	hiding
}

type deviceLister struct {
	ctx            context.Context
	yield          func(Device, error) bool
	roots, details side
}

func (l *deviceLister) run() {
	for {
		root, okRoot, go1 := l.entry(&l.roots)
		if !go1 {
			return
		}
		details, okDetails, go2 := l.entry(&l.details)
		if !go2 || !okRoot && !okDetails {
			return
		}
		var d Device
		var err error
		switch {
		case !okDetails || okRoot && root.first < details.first:
			d, err = l.device(root, item{}), l.without(&l.details, root, "details")
			l.roots.next()
		case !okRoot || details.first < root.first:
			d, err = l.device(item{}, details), l.without(&l.roots, details, "mappings")
			l.details.next()
		default:
			d = l.device(root, details)
			l.roots.next()
			l.details.next()
		}
		if !l.yield(d, err) {
			return
		}
	}
}

// entry is the side's next entry; damage on the way is told. The last result
// is false when nobody wants more.
func (l *deviceLister) entry(s *side) (item, bool, bool) {
	for {
		it, ok, err := s.entry(l.ctx)
		if err == nil {
			return it, ok, true
		}
		s.hide(it.keys())
		if !l.yield(Device{}, err) || l.ctx.Err() != nil {
			return item{}, false, false
		}
	}
}

// without is the error for a device that one side has and the other, s, not.
// Details that are hidden by damage, which was told already, are no error: the
// device can be read all the same.
func (l *deviceLister) without(s *side, have item, what string) error {
	at := place{tree: mappingTree, device: have.first, last: maxKey}
	switch {
	case !s.hides(have.keys()):
		return at.damage(have.leaf.block, fmt.Errorf("device has no %s: %w", what, ErrMismatch))
	case s == &l.details:
		return nil
	}
	return at.damage(have.leaf.block, fmt.Errorf("the way to its %s is damaged: %w", what, ErrDamaged))
}

func (l *deviceLister) device(root, details item) Device {
	var d Device
	if root.entry {
		d.ID, d.Root = root.first, root.leaf.uint64(root.i)
	}
	if details.entry {
		d.ID = details.first
		d.setDetails(details)
	}
	return d
}

func (d *Device) setDetails(it item) {
	le := binary.LittleEndian
	v := it.leaf.value(it.i)
	d.MappedBlocks, d.TransactionID = le.Uint64(v), le.Uint64(v[8:])
	d.CreationTime, d.SnapshotTime = le.Uint32(v[16:]), le.Uint32(v[20:])
}

// Device looks one device up. The error is [ErrNoDevice], or what is said of
// [Metadata.Devices].
func (m *Metadata) Device(ctx context.Context, id uint64) (Device, error) {
	root, err := m.root(ctx, id)
	if err != nil {
		return Device{}, err
	}
	d := Device{ID: id, Root: root}
	it, ok, err := m.cursor(m.super.DetailsRoot, detailsTree, 0).find(ctx, id)
	if err != nil {
		return d, err
	}
	if !ok {
		at := place{tree: detailsTree}
		return d, at.at(id).damage(m.super.DetailsRoot, fmt.Errorf("device has no details: %w", ErrMismatch))
	}
	d.setDetails(it)
	return d, nil
}

// root is where the mappings of a device begin.
func (m *Metadata) root(ctx context.Context, id uint64) (uint64, error) {
	it, ok, err := m.cursor(m.super.MappingRoot, deviceTree, 0).find(ctx, id)
	if err != nil {
		return 0, err
	}
	if !ok {
		return 0, fmt.Errorf("thinmeta: device %d: %w", id, ErrNoDevice)
	}
	return it.leaf.uint64(it.i), nil
}
