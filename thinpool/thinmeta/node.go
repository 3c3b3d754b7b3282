package thinmeta

import (
	"context"
	"encoding/binary"
	"fmt"
)

const (
	maxKey = 1<<64 - 1
	// maxDepth is more than a tree can need: its nodes are at least a third
	// full, and 84^10 is more than there are keys.
	maxDepth = 16

	nodeHeader   = 32
	flagInternal = 1
	flagLeaf     = 2
	childSize    = 8
)

// treeType tells the trees apart, which are all built alike.
type treeType struct {
	name      Tree
	valueSize int
}

var (
	deviceTree      = treeType{TreeDevices, 8}
	mappingTree     = treeType{TreeMappings, 8}
	detailsTree     = treeType{TreeDetails, 24}
	dataBitmapTree  = treeType{TreeDataBitmaps, indexEntrySize}
	dataCountTree   = treeType{TreeDataCounts, 4}
	metaBitmapIndex = treeType{TreeMetadataBitmaps, indexEntrySize} // no tree, but a single block
	metaCountTree   = treeType{TreeMetadataCounts, 4}
)

// node is a block of a tree that is right in itself: its header, and the order
// of its keys.
type node struct {
	block  uint64
	b      []byte
	leaf   bool
	n      int
	values int // where they begin
	size   int // of a value
}

// maxEntries is how many fit into a node. It is a multiple of three, for the
// kernel's way to rebalance.
func maxEntries(valueSize int) int {
	return (BlockSize - nodeHeader) / (8 + valueSize) / 3 * 3
}

func parseNode(b []byte, block uint64, valueSize int) (node, error) {
	le := binary.LittleEndian
	n := node{block: block, b: b, size: childSize}
	switch flags := le.Uint32(b[4:]); flags {
	case flagInternal:
	case flagLeaf:
		n.leaf, n.size = true, valueSize
	default:
		return node{}, fmt.Errorf("flags %#x are neither a leaf's nor an internal node's: %w", flags, ErrStructure)
	}
	entries, most, size := le.Uint32(b[16:]), le.Uint32(b[20:]), le.Uint32(b[24:])
	room := maxEntries(n.size)
	switch {
	case size != uint32(n.size):
		return node{}, fmt.Errorf("values of %d bytes instead of %d: %w", size, n.size, ErrStructure)
	case most != uint32(room):
		return node{}, fmt.Errorf("room for %d entries instead of %d: %w", most, room, ErrStructure)
	case entries > most:
		return node{}, fmt.Errorf("%d entries where %d have room: %w", entries, most, ErrStructure)
	case entries == 0 && !n.leaf:
		return node{}, fmt.Errorf("internal node without entries: %w", ErrStructure)
	}
	n.n, n.values = int(entries), nodeHeader+8*room
	return n, nil
}

// checkKeys wants the keys in order, and between first and last.
func (n node) checkKeys(first, last uint64) error {
	for i := range n.n {
		k := n.key(i)
		if i > 0 && k <= n.key(i-1) {
			return fmt.Errorf("key %d follows key %d: %w", k, n.key(i-1), ErrStructure)
		}
		if k < first || k > last {
			return fmt.Errorf("key %d, while the node above allows %d to %d: %w", k, first, last, ErrStructure)
		}
	}
	return nil
}

func (n node) key(i int) uint64 { return binary.LittleEndian.Uint64(n.b[nodeHeader+8*i:]) }

func (n node) value(i int) []byte { return n.b[n.values+n.size*i:][:n.size] }

func (n node) uint64(i int) uint64 { return binary.LittleEndian.Uint64(n.value(i)) }

func (n node) uint32(i int) uint32 { return binary.LittleEndian.Uint32(n.value(i)) }

// childKeys are the keys that the i-th child may have, in a node that may have
// keys up to last.
func (n node) childKeys(i int, last uint64) (uint64, uint64) {
	if i+1 < n.n {
		last = n.key(i+1) - 1
	}
	return n.key(i), last
}

// load reads the node of a tree that is expected at a place. The error is a
// [*Damage], or the context's.
func (m *Metadata) load(ctx context.Context, block uint64, at place) (node, error) {
	if err := ctx.Err(); err != nil {
		return node{}, fmt.Errorf("thinmeta: read metadata: %w", err)
	}
	if err := at.checkWay(block); err != nil {
		d := at.damage(block, err)
		d.misplaced = true
		return node{}, d
	}
	b, err := m.blocks.get(block, kindNode)
	if err != nil {
		return node{}, at.damage(block, err)
	}
	n, err := parseNode(b, block, at.tree.valueSize)
	if err != nil {
		return node{}, at.damage(block, err)
	}
	if err := n.checkPlace(at); err != nil {
		d := at.damage(block, err)
		d.misplaced = true
		if n.n > 0 { // what is in the wrong place is lost as well
			d.First, d.Last = min(d.First, n.key(0)), max(d.Last, n.key(n.n-1))
		}
		return node{}, d
	}
	return n, nil
}

// checkPlace wants keys, in order, and within those of the place. Only the root
// of an empty tree has none. As each node has keys, and those of its children
// do not overlap, every walk ends.
func (n node) checkPlace(at place) error {
	if n.n == 0 && len(at.above) > 0 {
		return fmt.Errorf("no entries: %w", ErrStructure)
	}
	return n.checkKeys(at.first, at.last)
}
