package thinmeta

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
)

// DeviceUsage is what a device has of the data device, in blocks of the pool.
type DeviceUsage struct {
	ID uint64
	// Mapped is how many blocks the device has, Exclusive how many of them
	// deleting it would free. The rest, Shared, are other devices' as well.
	Mapped, Exclusive uint64
	// Err says what could not be read of the device; the numbers count the
	// rest. Damage that devices share is described for the first of them; the
	// others have an error that refers to it.
	Err error
}

// Shared is what other devices have as well.
func (d DeviceUsage) Shared() uint64 { return d.Mapped - d.Exclusive }

// Usage is who has what of the data device.
type Usage struct {
	// Devices are sorted by their ids.
	Devices []DeviceUsage
	// Used is how many data blocks are in use, each counted once.
	Used uint64
	// Err says what could not be read, nil if everything could. Exclusive is
	// too high then for devices that share blocks with what was lost.
	Err error

	m     *Metadata
	nodes nodeInfos
	data  blockStates
}

// Usage reads the mappings of all devices. What devices share is read once and
// costs nothing more, and what they have for themselves twice. It needs two
// bits of memory for each data block and 40 bytes for each node, in pages of
// 1024 blocks and 64 nodes of which one is in use. A pool fills its pages;
// metadata that was made for it can have a mapping in each, of 16 bytes, that
// takes 290 bytes of memory: 20 times the size of the metadata at most.
//
// Data blocks that only the metadata snapshot of an active pool still refers
// to are not seen: they are free when it is released.
//
// The error is the context's; damage is in the result.
func (m *Metadata) Usage(ctx context.Context) (*Usage, error) {
	u := &Usage{m: m, nodes: nodeInfos{}, data: blockStates{}}
	roots, err := u.roots(ctx)
	if err != nil {
		return nil, err
	}
	if err := u.count(ctx, roots); err != nil {
		return nil, err
	}
	for i := range u.Devices {
		if err := u.countExclusive(ctx, &u.Devices[i], roots[i]); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// roots are where the mappings of each device begin, in the order of Devices,
// which it fills in.
func (u *Usage) roots(ctx context.Context) ([]uint64, error) {
	var lost errorList
	var roots []uint64
	c := u.m.cursor(u.m.super.MappingRoot, deviceTree, 0)
	for {
		it, ok, err := c.entry(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, err
		case err != nil:
			lost.add(err)
		case !ok:
			u.Err = lost.join()
			return roots, nil
		default:
			roots = append(roots, it.leaf.uint64(it.i))
			u.Devices = append(u.Devices, DeviceUsage{ID: it.first})
			c.next()
		}
	}
}

// count finds out how much each device has, and which nodes and data blocks
// are shared.
func (u *Usage) count(ctx context.Context, roots []uint64) error {
	errs := make([]error, 0, len(roots)+1)
	errs = append(errs, u.Err)
	for i, root := range roots {
		d := &u.Devices[i]
		counter := usageCounter{u: u}
		w := walker{m: u.m, ctx: ctx, v: &counter}
		var err error
		if d.Mapped, err = w.walk(root, mappingTree, d.ID); err != nil {
			return err
		}
		d.Err = counter.damage.join()
		errs = append(errs, d.Err)
	}
	u.Err = errors.Join(errs...)
	return nil
}

// usageCounter sees each node and its data blocks once.
type usageCounter struct {
	u      *Usage
	damage errorList
	before []int // for each node on the way, how many errors there were
}

var errToldBefore = fmt.Errorf("something here is damaged, as was said of another device: %w", ErrDamaged)

func (c *usageCounter) reference(block uint64, at place) (bool, uint64) {
	if block >= blockLimit || slices.Contains(at.above, block) {
		return true, 0 // where it is refused
	}
	info := c.u.nodes.of(block)
	if !info.seen {
		info.seen = true
		return true, 0
	}
	info.shared = true
	switch {
	case info.damaged:
		c.damage.add(at.damage(block, errToldBefore))
	case !info.fits(at):
		c.damage.add(at.damage(block, info.misfit(at)))
		return false, 0
	}
	return false, info.entries
}

func (c *usageCounter) node(n node, _ place) {
	c.u.nodes.of(n.block).set(n)
	c.before = append(c.before, c.damage.len())
	if !n.leaf {
		return
	}
	for i := range n.n {
		if c.u.data.add(mappingAt(n, i).Data) {
			c.u.Used++
		}
	}
}

func (c *usageCounter) lost(d *Damage) {
	c.damage.add(d)
	if d.Block < blockLimit {
		c.u.nodes.of(d.Block).lose(d)
	}
}

func (c *usageCounter) done(block, entries uint64) {
	info := c.u.nodes.of(block)
	info.entries = entries
	before := c.before[len(c.before)-1]
	c.before = c.before[:len(c.before)-1]
	info.damaged = info.damaged || c.damage.len() > before
}

// countExclusive goes through what is not shared once more: only now it is
// known what is.
func (u *Usage) countExclusive(ctx context.Context, d *DeviceUsage, root uint64) error {
	w := walker{m: u.m, ctx: ctx, v: &exclusiveCounter{u: u, d: d}}
	_, err := w.walk(root, mappingTree, d.ID)
	return err
}

type exclusiveCounter struct {
	u *Usage
	d *DeviceUsage
}

func (c *exclusiveCounter) reference(block uint64, _ place) (bool, uint64) {
	return !c.u.sharedNode(block), 0
}

func (c *exclusiveCounter) node(n node, _ place) {
	if !n.leaf {
		return
	}
	for i := range n.n {
		if !c.u.data.shared(mappingAt(n, i).Data) {
			c.d.Exclusive++
		}
	}
}

func (c *exclusiveCounter) lost(*Damage)        {}
func (c *exclusiveCounter) done(uint64, uint64) {}

func (u *Usage) sharedNode(block uint64) bool { return u.nodes.get(block).shared }

// Device is the usage of one device; false where there is none with the id.
func (u *Usage) Device(id uint64) (DeviceUsage, bool) {
	i, ok := slices.BinarySearchFunc(u.Devices, id, func(d DeviceUsage, id uint64) int {
		switch {
		case d.ID < id:
			return -1
		case d.ID > id:
			return 1
		}
		return 0
	})
	if !ok {
		return DeviceUsage{}, false
	}
	return u.Devices[i], true
}

// Exclusive goes through the mappings of a device that no other device has:
// what deleting it would free. See [Metadata.Mappings] for the errors.
func (u *Usage) Exclusive(ctx context.Context, id uint64) iter.Seq2[Mapping, error] {
	return u.m.runs(ctx, id,
		u.sharedNode, func(data uint64) bool { return !u.data.shared(data) })
}
