package thinmeta

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// Tables by block number. They hold what was put in and little around it, as
// block numbers that come from damaged metadata can be anything.

// nodeInfo is what a pass over everything knows of a metadata block.
type nodeInfo struct {
	seen        bool
	shared      bool // referred to more than once
	damaged     bool // or something below it is
	keys        bool // it has some: first to last
	tree        Tree
	first, last uint64
	entries     uint64 // of all leaves below
}

// fits tells whether the keys are right for a place.
func (i *nodeInfo) fits(at place) bool { return !i.keys || i.first >= at.first && i.last <= at.last }

// set notes the keys of the node.
func (i *nodeInfo) set(n node) {
	if n.n > 0 {
		i.keys, i.first, i.last = true, n.key(0), n.key(n.n-1)
	}
}

// lose notes what became of the node. If it may be right elsewhere, it is as if
// it had not been seen; if it is below itself, it is known already.
func (i *nodeInfo) lose(d *Damage) {
	switch {
	case !d.misplaced:
		i.damaged = true
	case !errors.Is(d.Cause, ErrLoop):
		i.seen = false
	}
}

func (i *nodeInfo) misfit(at place) error {
	return fmt.Errorf("keys %d to %d, while the node above allows %d to %d: %w", i.first, i.last, at.first, at.last, ErrStructure)
}

const nodePage = 64

type nodeInfos map[uint64]*[nodePage]nodeInfo

func (s nodeInfos) of(block uint64) *nodeInfo {
	p := s[block/nodePage]
	if p == nil {
		p = new([nodePage]nodeInfo)
		s[block/nodePage] = p
	}
	return &p[block%nodePage]
}

func (s nodeInfos) get(block uint64) nodeInfo {
	if p := s[block/nodePage]; p != nil {
		return p[block%nodePage]
	}
	return nodeInfo{}
}

// blockStates counts the references to data blocks: none, one, or more.
type blockStates map[uint64]*[blockPage / 64]blockState

const blockPage = 1024

// blockState is of 64 blocks.
type blockState struct{ one, more uint64 }

// add counts a reference and tells whether it was the first.
func (s blockStates) add(block uint64) bool {
	p := s[block/blockPage]
	if p == nil {
		p = new([blockPage / 64]blockState)
		s[block/blockPage] = p
	}
	b, bit := &p[block%blockPage/64], uint64(1)<<(block%64)
	first := b.one&bit == 0
	if !first {
		b.more |= bit
	}
	b.one |= bit
	return first
}

func (s blockStates) has(block uint64) bool {
	p := s[block/blockPage]
	return p != nil && p[block%blockPage/64].one>>(block%64)&1 != 0
}

func (s blockStates) remove(block uint64) {
	if p := s[block/blockPage]; p != nil {
		b, bit := &p[block%blockPage/64], uint64(1)<<(block%64)
		b.one &^= bit
		b.more &^= bit
	}
}

func (s blockStates) shared(block uint64) bool {
	p := s[block/blockPage]
	return p != nil && p[block%blockPage/64].more>>(block%64)&1 != 0
}

// refTable counts the references to blocks. Most blocks have few.
type refTable struct {
	pages map[uint64]*[refPage]uint8
	many  map[uint64]uint32 // instead of refMany
}

const (
	refPage = 256
	refMany = 255
)

func newRefTable() refTable {
	return refTable{map[uint64]*[refPage]uint8{}, map[uint64]uint32{}}
}

func (t refTable) add(block uint64) {
	p := t.pages[block/refPage]
	if p == nil {
		p = new([refPage]uint8)
		t.pages[block/refPage] = p
	}
	switch n := &p[block%refPage]; *n {
	case refMany:
		t.many[block]++
	case refMany - 1:
		*n, t.many[block] = refMany, refMany
	default:
		*n++
	}
}

// set gives a block of which nothing was said a number of references.
func (t refTable) set(block uint64, n uint32) {
	if n == 0 {
		return
	}
	t.add(block)
	p := t.pages[block/refPage]
	if n < refMany {
		p[block%refPage] = uint8(n)
		return
	}
	p[block%refPage], t.many[block] = refMany, n
}

// get returns the references of a block.
func (t refTable) get(block uint64) uint32 {
	p := t.pages[block/refPage]
	if p == nil {
		return 0
	}
	if n := p[block%refPage]; n != refMany {
		return uint32(n)
	}
	return t.many[block]
}

// each calls f for each block that has references, in order, while f returns true.
func (t refTable) each(f func(block uint64, references uint32) bool) {
	for _, number := range slices.Sorted(maps.Keys(t.pages)) {
		for i, n := range t.pages[number] {
			if block := number*refPage + uint64(i); n > 0 && !f(block, t.get(block)) {
				return
			}
		}
	}
}

// take returns the references of a block and forgets them.
func (t refTable) take(block uint64) uint32 {
	p := t.pages[block/refPage]
	if p == nil {
		return 0
	}
	n := uint32(p[block%refPage])
	if n == refMany {
		n = t.many[block]
	}
	p[block%refPage] = 0
	return n
}

// rest calls f for each block that still has references, in order.
func (t refTable) rest(f func(block uint64, references uint32)) {
	for _, number := range slices.Sorted(maps.Keys(t.pages)) {
		for i, n := range t.pages[number] {
			if n > 0 {
				block := number*refPage + uint64(i)
				f(block, t.take(block))
			}
		}
	}
}
