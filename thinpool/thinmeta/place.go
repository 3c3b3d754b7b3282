package thinmeta

import (
	"fmt"
	"slices"
)

// place is where a block is expected: in which tree, below which blocks, with
// which keys.
type place struct {
	tree        treeType
	device      uint64
	above       []uint64
	first, last uint64
}

// damage is what is wrong with a block that is expected at the place.
func (p place) damage(block uint64, cause error) *Damage {
	return &Damage{
		Block: block, Path: Path{p.tree.name, p.device, slices.Clone(p.above)},
		First: p.first, Last: p.last, Cause: cause,
	}
}

// at narrows a place down to one key.
func (p place) at(key uint64) place {
	p.first, p.last = key, key
	return p
}

// below is a place below a block at the place.
func (p place) below(block uint64) place {
	p.above = append(p.above[:len(p.above):len(p.above)], block)
	return p
}

// child is the place of the i-th child of a node, if the place is below it.
func (p place) child(n node, i int) place {
	p.first, p.last = n.childKeys(i, p.last)
	return p
}

// checkWay looks at the way to a node only.
func (p place) checkWay(block uint64) error {
	if slices.Contains(p.above, block) {
		return ErrLoop
	}
	if len(p.above) >= maxDepth {
		return fmt.Errorf("tree of more than %d levels: %w", maxDepth, ErrStructure)
	}
	return nil
}
