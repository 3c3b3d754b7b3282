package thinmeta

import (
	"fmt"
	"slices"
)

// This file is the checker as a [visitor] of trees.

// damage reports damage, and notes where it is.
func (c *checker) damage(d *Damage) {
	c.told[d.Block] = true
	c.report.damage(d)
}

func (c *checker) reference(block uint64, at place) (bool, uint64) {
	if !c.inRange(block, at) {
		return false, 0
	}
	if slices.Contains(at.above, block) {
		return true, 0 // where it is refused
	}
	c.refs[MetadataSpace].add(block)
	info := c.nodes.of(block)
	if !info.seen {
		info.seen, info.tree = true, at.tree.name
		return true, 0
	}
	c.again(block, info, at)
	return false, info.entries
}

// inRange tells of references to blocks that there are not, or that are no
// nodes for sure.
func (c *checker) inRange(block uint64, at place) bool {
	limit := uint64(blockLimit)
	if c.counting() {
		limit = min(limit, c.m.super.MetadataSpace.Blocks)
	}
	if block > 0 && block < limit {
		return true
	}
	c.incomplete = true
	c.damage(at.damage(block, fmt.Errorf("there are %d blocks: %w", limit, ErrRange)))
	return false
}

// again checks a node in one more place. It has been read before.
func (c *checker) again(block uint64, info *nodeInfo, at place) {
	switch {
	case info.tree != at.tree.name:
		c.damage(at.damage(block, fmt.Errorf("block belongs to the %s: %w", info.tree, ErrMismatch)))
	case !info.fits(at):
		c.damage(at.damage(block, info.misfit(at)))
	}
}

func (c *checker) node(n node, at place) {
	c.report.Nodes++
	c.nodes.of(n.block).set(n)
	if least := maxEntries(n.size) / 3; n.n < least && len(at.above) > 0 {
		c.damage(at.damage(n.block, fmt.Errorf("%d entries where %d are the least: %w", n.n, least, ErrStructure)))
	}
	if !n.leaf {
		return
	}
	switch at.tree {
	case deviceTree:
		c.deviceLeaf(n)
	case mappingTree:
		c.mappingLeaf(n, at)
	case dataBitmapTree:
		c.bitmapLeaf(n, at)
	}
}

func (c *checker) lost(d *Damage) {
	c.incomplete = true
	if d.Block < blockLimit {
		c.nodes.of(d.Block).lose(d)
	}
	c.damage(d)
}

func (c *checker) done(block, entries uint64) { c.nodes.of(block).entries = entries }

// deviceLeaf notes the roots of devices for later.
func (c *checker) deviceLeaf(n node) {
	for i := range n.n {
		id := n.key(i)
		c.devices = append(c.devices, deviceRoot{id, n.uint64(i), place{tree: mappingTree, device: id, last: maxKey}})
	}
}

func (c *checker) mappingLeaf(n node, at place) {
	for i := range n.n {
		mapping := mappingAt(n, i)
		data := mapping.Data
		c.time = max(c.time, mapping.Time)
		if c.counting() && data >= c.m.super.DataSpace.Blocks {
			c.damage(at.at(n.key(i)).damage(n.block,
				fmt.Errorf("data block %d of %d: %w", data, c.m.super.DataSpace.Blocks, ErrRange)))
			continue
		}
		if c.counting() {
			c.refs[DataSpace].add(data)
		}
	}
}

// bitmapLeaf counts the references to bitmaps, which are no nodes.
func (c *checker) bitmapLeaf(n node, at place) {
	below := at.below(n.block)
	for i := range n.n {
		c.bitmapReference(parseIndexEntry(n.value(i)), below.at(n.key(i)))
	}
}

func (c *checker) bitmapReference(e indexEntry, at place) {
	if !c.inRange(e.block, at) {
		return
	}
	c.refs[MetadataSpace].add(e.block)
	info := c.nodes.of(e.block)
	if info.seen {
		c.damage(at.damage(e.block, fmt.Errorf("block belongs to the %s as well: %w", info.tree, ErrMismatch)))
		return
	}
	info.seen, info.tree = true, at.tree.name
}
