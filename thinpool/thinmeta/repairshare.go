package thinmeta

import "fmt"

// This file makes blocks count as shared that more than one mapping leads to, and that the kernel would take for one device's alone: it would write into them in
// place. Metadata that counted them wrongly had handed them out twice.

// sharer looks for such mappings. It is a [visitor] of each node once.
type sharer struct {
	b    *builder
	seen blockStates
	// found are the entries of leaves.
	found map[uint64][]int
}

func (b *builder) share() error {
	s := sharer{b: b, seen: blockStates{}, found: map[uint64][]int{}}
	m := &Metadata{super: b.m.super, blocks: newBlocks(b.f, Options{CacheBytes: defaultCache})}
	w := walker{m: m, ctx: b.ctx, v: &s}
	for _, d := range b.roots {
		if _, err := w.walk(d.root, mappingTree, d.id); err != nil {
			return err
		}
	}
	for block, entries := range s.found {
		if err := b.reshare(block, entries); err != nil {
			return err
		}
	}
	return b.bad
}

// reshare takes the times from entries of a leaf: what was mapped before any snapshot is shared.
func (b *builder) reshare(block uint64, entries []int) error {
	n, err := b.reread(block)
	if err != nil {
		return err
	}
	all := make([]pair, n.n)
	for i := range n.n {
		all[i] = pair{n.key(i), n.uint64(i)}
	}
	for _, i := range entries {
		all[i].value &^= timeMask
	}
	b.reshared = true
	return b.writeNode(block, 0, all)
}

func (s *sharer) reference(block uint64, _ place) (bool, uint64) { return s.seen.add(block), 0 }

func (s *sharer) node(n node, at place) {
	if !n.leaf {
		return
	}
	d, known := s.b.details[at.device]
	if !known {
		d.SnapshotTime = s.b.time
	}
	for i := range n.n {
		mapping := mappingAt(n, i)
		if d.MayShare(mapping) || s.b.refs[DataSpace].get(mapping.Data) < 2 {
			continue
		}
		s.found[n.block] = append(s.found[n.block], i)
		if s.b.late { // it may be nothing but that
			continue
		}
		s.b.mender.lost.add(at.at(n.key(i)).damage(n.block, fmt.Errorf("data block %d belongs to something else as well: %w", mapping.Data, ErrMismatch)))
	}
}

func (s *sharer) lost(d *Damage) { s.b.bad = d }

func (s *sharer) done(uint64, uint64) {}
