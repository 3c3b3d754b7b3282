package thinmeta

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// leastMappings is how many entries a node of mappings has at least, unless it is a root: leaves and internal nodes have
// the same room.
const leastMappings = (BlockSize - nodeHeader) / 16 / 3

// mended is a node of mappings that has been looked at, and all below it.
type mended struct {
	lost        bool
	level       int    // 0 for a leaf
	n           int    // entries
	first, last uint64 // keys below it, unless it is empty
	mappings    int    // below it
}

// kid is a child of an internal node.
type kid struct {
	key, block uint64
	*mended
}

// pair is an entry of a leaf or an internal node.
type pair struct{ key, value uint64 }

// mendRoot mends what a device has, and returns where that begins now, 0 where nothing is left, and what it has lost.
func (r *mender) mendRoot(root uint64, at place) (uint64, []Range, error) {
	root, m, err := r.mend(root, at)
	if err != nil || m == nil {
		return 0, nil, err
	}
	lost := r.spans[root]         // those of what is below may be others' as well, who have not lost what this one has
	for m.level > 0 && m.n == 1 { // as the kernel does; what is below may be too small for anything but a root
		n, err := r.reread(root)
		if err != nil {
			return 0, nil, err
		}
		root = n.uint64(0)
		m = r.nodes[root]
	}
	return root, lost, nil
}

// mend mends a node and what is below it, in place, once for all who share it, and returns it as it can be at the place: nil is a node
// that is lost there.
func (r *mender) mend(block uint64, at place) (uint64, *mended, error) {
	err := r.inRange(block)
	if err == nil && r.fixed[block] {
		err = fmt.Errorf("block belongs to another tree: %w", ErrMismatch)
	}
	if err != nil {
		r.lost.add(at.damage(block, err))
		return 0, nil, nil
	}
	if m := r.nodes[block]; m != nil && !slices.Contains(at.above, block) {
		if m.lost {
			r.lost.add(at.damage(block, errToldBefore))
			return 0, nil, nil
		}
		return r.fit(block, m, at)
	}
	n, err := r.m.load(r.ctx, block, at)
	if d := (*Damage)(nil); errors.As(err, &d) {
		r.lost.add(d)
		if !d.misplaced {
			r.nodes[block] = &mended{lost: true}
		}
		return 0, nil, nil
	}
	if err != nil {
		return 0, nil, err
	}
	var m *mended
	if n.leaf {
		m, err = r.mendLeaf(n, at)
	} else {
		m, err = r.mendInternal(n, r.widest(block, at))
	}
	if err != nil {
		return 0, nil, err
	}
	r.nodes[block] = m
	if m.lost {
		return 0, nil, nil
	}
	return r.fit(block, m, at)
}

func (r *mender) mendLeaf(n node, at place) (*mended, error) {
	kept := make([]pair, 0, n.n)
	late := false
	for i := range n.n {
		mapping := mappingAt(n, i)
		if mapping.Data >= r.dataLimit {
			r.lost.add(at.at(n.key(i)).damage(n.block, fmt.Errorf("data block %d of %d: %w", mapping.Data, r.dataLimit, ErrRange)))
			r.lose(n.block, Range{n.key(i), n.key(i)})
			continue
		}
		r.data = max(r.data, mapping.Data+1)
		value := n.uint64(i)
		if mapping.Time > r.time { // when, is not known: it counts as shared
			value &^= timeMask
			late, r.late, r.reshared = true, true, true
		}
		kept = append(kept, pair{n.key(i), value})
	}
	if len(kept) == 0 && len(at.above) > 0 {
		return &mended{lost: true}, nil
	}
	if len(kept) < n.n || late {
		if err := r.writeNode(n.block, 0, kept); err != nil {
			return nil, err
		}
	}
	return leafOf(kept), nil
}

func leafOf(entries []pair) *mended {
	m := &mended{n: len(entries), mappings: len(entries)}
	if m.n > 0 {
		m.first, m.last = entries[0].key, entries[m.n-1].key
	}
	return m
}

func (r *mender) mendInternal(n node, at place) (*mended, error) {
	below := at.below(n.block)
	children, blocks := make([]*mended, n.n), make([]uint64, n.n)
	for i := range n.n {
		var err error
		if blocks[i], children[i], err = r.mend(n.uint64(i), below.child(n, i)); err != nil {
			return nil, err
		}
	}
	level := usualLevel(children)
	kids, changed := make([]kid, 0, n.n), false
	for i, m := range children {
		place, child := below.child(n, i), blocks[i]
		if m != nil && m.level != level {
			r.lost.add(place.damage(n.uint64(i), fmt.Errorf("another level than its neighbours: %w", ErrStructure)))
			m = nil
		}
		changed = changed || m == nil || child != n.uint64(i)
		if m == nil {
			r.lose(n.block, Range{place.first, place.last})
			continue
		}
		r.loseAll(n.block, r.spans[child], place)
		kids = append(kids, kid{n.key(i), child, m})
	}
	if len(kids) == 0 {
		return &mended{lost: true}, nil
	}
	kids, moved, err := r.balance(kids)
	if err != nil {
		return nil, err
	}
	if moved || changed {
		if err := r.writeNode(n.block, kids[0].level+1, pairsOf(kids)); err != nil {
			return nil, err
		}
	}
	return internalOf(kids), nil
}

// usualLevel is the level of the children with most of the mappings: a tree is of the same height everywhere.
func usualLevel(children []*mended) (usual int) {
	mappings := map[int]int{}
	for _, m := range children {
		if m == nil {
			continue
		}
		mappings[m.level] += m.mappings
		if mappings[m.level] > mappings[usual] {
			usual = m.level
		}
	}
	return usual
}

func internalOf(kids []kid) *mended {
	last := kids[len(kids)-1]
	m := &mended{level: last.level + 1, n: len(kids), first: kids[0].key, last: last.last}
	for _, k := range kids {
		m.mappings += k.mappings
	}
	return m
}

func pairsOf(kids []kid) []pair {
	pairs := make([]pair, len(kids))
	for i, k := range kids {
		pairs[i] = pair{k.key, k.block}
	}
	return pairs
}

// loseAll notes what is lost below a child, as far as that can have had it at its place.
func (r *mender) loseAll(block uint64, lost []Range, at place) {
	for _, l := range lost {
		if l.First <= at.last {
			r.lose(block, Range{l.First, min(l.Last, at.last)})
		}
	}
}

// lose notes a range that is lost below a node.
func (r *mender) lose(block uint64, lost Range) {
	spans := r.spans[block]
	switch n := len(spans); {
	case n > 0 && lost.First > 0 && spans[n-1].Last == lost.First-1:
		spans[n-1].Last = lost.Last
	case n < maxErrors:
		r.spans[block] = append(spans, lost)
	}
}

// reread reads a node as it is now.
func (r *mender) reread(block uint64) (node, error) {
	b := alignedBytes(BlockSize)
	if _, err := r.f.ReadAt(b, int64(block*BlockSize)); err != nil {
		return node{}, fmt.Errorf("read block %d: %w", block, err)
	}
	return parseNode(b, block, mappingTree.valueSize)
}

func (r *mender) writeNode(block uint64, level int, entries []pair) error {
	b := newNode(level == 0, mappingTree.valueSize)
	for _, e := range entries {
		b.add(e.key, binary.LittleEndian.AppendUint64(nil, e.value))
	}
	return r.write(block, b.b, salts[kindNode])
}
