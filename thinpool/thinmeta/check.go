package thinmeta

import (
	"context"
	"errors"
	"fmt"
)

// Check reads everything and compares what is said in more than one place:
// that the trees are in order, that every device has mappings and details,
// and that both space maps count the references that there are, from the
// metadata snapshot as well if there is one. A metadata snapshot on its own
// has no space maps; its trees are checked.
//
// The pool must not be active unless it is its metadata snapshot that is read.
// What is shared is read once. Check needs a byte of memory for each data
// block in use, and about 50 for each node.
//
// The error is the context's; what is wrong is in the report.
func (m *Metadata) Check(ctx context.Context) (*Report, error) {
	c := &checker{m: m, ctx: ctx, report: &Report{}, nodes: nodeInfos{}, told: map[uint64]bool{}}
	for i := range c.refs {
		c.refs[i] = newRefTable()
	}
	for _, step := range []func() error{c.superblock, c.heldRoot, c.trees, c.clock, c.spaceMaps, c.counts} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return c.report, nil
}

type checker struct {
	m      *Metadata
	ctx    context.Context
	report *Report
	nodes  nodeInfos
	refs   [2]refTable // by Space
	// generations are the pool as it is and, if there is one, the metadata
	// snapshot.
	generations []*Metadata
	devices     []deviceRoot    // to be walked
	incomplete  bool            // there are references that could not be read
	told        map[uint64]bool // blocks with damage
	time        uint32          // the latest of any mapping or device
}

// deviceRoot is an entry of the device tree.
type deviceRoot struct {
	id, root uint64
	at       place
}

func (c *checker) superblock() error {
	c.generations = []*Metadata{c.m}
	if !c.counting() {
		return nil
	}
	c.refs[MetadataSpace].add(0)
	s := c.m.super
	if s.MetadataSpace.Blocks == 0 || s.MetadataSpace.Blocks > blockLimit {
		c.damage(c.atSuperblock(fmt.Errorf("metadata of %d blocks: %w", s.MetadataSpace.Blocks, ErrRange)))
	}
	for _, root := range []SpaceMapRoot{s.DataSpace, s.MetadataSpace} {
		if root.Allocated > root.Blocks {
			c.damage(c.atSuperblock(fmt.Errorf("%d of %d blocks are in use: %w", root.Allocated, root.Blocks, ErrRange)))
		}
	}
	return nil
}

// counting tells whether there are space maps.
func (c *checker) counting() bool { return c.m.super.Block == 0 }

func (c *checker) atSuperblock(cause error) *Damage {
	return place{tree: treeType{name: TreeSuperblock}, last: maxKey}.damage(c.m.super.Block, cause)
}

// heldRoot reads the superblock of the metadata snapshot, if there is one.
func (c *checker) heldRoot() error {
	held := c.m.super.HeldRoot
	if held == 0 || !c.counting() {
		return nil
	}
	if held >= c.m.super.MetadataSpace.Blocks {
		c.incomplete = true
		c.damage(c.atSuperblock(fmt.Errorf("metadata snapshot at block %d: %w", held, ErrRange)))
		return nil
	}
	c.refs[MetadataSpace].add(held)
	s, err := ReadSuperblockAt(c.m.blocks.r, held)
	if err != nil {
		c.incomplete = true
		d := c.atSuperblock(err)
		d.Block = held
		c.damage(d)
		return nil
	}
	c.generations = append(c.generations, &Metadata{s, c.m.blocks})
	return nil
}

// trees goes through devices, mappings and details, of all generations.
func (c *checker) trees() error {
	for _, m := range c.generations {
		if err := errors.Join(c.walk(m.super.MappingRoot, deviceTree, 0), c.walk(m.super.DetailsRoot, detailsTree, 0)); err != nil {
			return err
		}
	}
	for _, d := range c.devices {
		w := walker{m: c.m, ctx: c.ctx, v: c}
		w.visit(d.root, d.at)
		if w.err != nil {
			return w.err
		}
	}
	for _, m := range c.generations {
		if err := c.deviceList(m); err != nil {
			return err
		}
	}
	return nil
}

func (c *checker) walk(root uint64, tree treeType, device uint64) error {
	w := walker{m: c.m, ctx: c.ctx, v: c}
	_, err := w.walk(root, tree, device)
	return err
}

// deviceList compares the device tree with the details.
func (c *checker) deviceList(m *Metadata) error {
	for d, err := range m.Devices(c.ctx) {
		if err := c.ctx.Err(); err != nil {
			return fmt.Errorf("thinmeta: read metadata: %w", err)
		}
		if err != nil {
			if errors.Is(err, ErrMismatch) { // other damage was found before
				c.report.damage(err)
			}
			continue
		}
		if m != c.m {
			continue
		}
		info := c.nodes.get(d.Root)
		c.time = max(c.time, d.CreationTime, d.SnapshotTime)
		c.report.Devices++
		c.report.Mappings += info.entries
		if !c.incomplete && info.entries != d.MappedBlocks {
			at := place{tree: detailsTree}
			c.report.stale(at.at(d.ID).damage(m.super.DetailsRoot,
				fmt.Errorf("device %d has %d mappings, not %d: %w", d.ID, info.entries, d.MappedBlocks, ErrMismatch)))
		}
	}
	return nil
}

// clock compares the pool's time, which counts snapshots, with the times at which blocks were mapped and devices made. With one that is behind, the kernel
// takes blocks of the next snapshots for their origin's alone, and writes into them.
func (c *checker) clock() error {
	if now := c.m.super.Time; c.time > now {
		c.damage(c.atSuperblock(fmt.Errorf("time %d, and something is of time %d: %w", now, c.time, ErrMismatch)))
	}
	return nil
}
