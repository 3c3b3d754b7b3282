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

// mendRoot mends what a device has, and returns where that begins now: 0 where nothing is left.
func (r *mender) mendRoot(root uint64, at place) (uint64, error) {
	m, err := r.mend(root, at)
	if err != nil || m == nil {
		return 0, err
	}
	for m.level > 0 && m.n == 1 { // as the kernel does; what is below may be too small for anything but a root
		n, err := r.reread(root)
		if err != nil {
			return 0, err
		}
		child := n.uint64(0)
		if len(r.spans[root]) > 0 {
			r.spans[child] = r.spans[root]
		}
		root, m = child, r.nodes[child]
	}
	return root, nil
}

// mend mends a node and what is below it, in place, once for all who share it. nil is a node that is lost at the place.
func (r *mender) mend(block uint64, at place) (*mended, error) {
	err := r.inRange(block)
	if err == nil && r.fixed[block] {
		err = fmt.Errorf("block belongs to another tree: %w", ErrMismatch)
	}
	if err != nil {
		r.lost.add(at.damage(block, err))
		return nil, nil
	}
	if m := r.nodes[block]; m != nil && !slices.Contains(at.above, block) {
		return r.again(block, m, at), nil
	}
	n, err := r.m.load(r.ctx, block, at)
	if d := (*Damage)(nil); errors.As(err, &d) {
		r.lost.add(d)
		if !d.misplaced {
			r.nodes[block] = &mended{lost: true}
		}
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var m *mended
	if n.leaf {
		m, err = r.mendLeaf(n, at)
	} else {
		m, err = r.mendInternal(n, at)
	}
	if err != nil {
		return nil, err
	}
	r.nodes[block] = m
	if m.lost {
		return nil, nil
	}
	return m, nil
}

// again is a node in one more place.
func (r *mender) again(block uint64, m *mended, at place) *mended {
	switch {
	case m.lost:
		r.lost.add(at.damage(block, errToldBefore))
		return nil
	case m.n > 0 && (m.first < at.first || m.last > at.last):
		r.lost.add(at.damage(block, fmt.Errorf("keys %d to %d, while the node above allows %d to %d: %w", m.first, m.last, at.first, at.last, ErrStructure)))
		return nil
	}
	return m
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
	children := make([]*mended, n.n)
	for i := range n.n {
		var err error
		if children[i], err = r.mend(n.uint64(i), below.child(n, i)); err != nil {
			return nil, err
		}
	}
	level := usualLevel(children)
	kids := make([]kid, 0, n.n)
	for i, m := range children {
		place, child := below.child(n, i), n.uint64(i)
		if m != nil && m.level != level {
			r.lost.add(place.damage(child, fmt.Errorf("another level than its neighbours: %w", ErrStructure)))
			m = nil
		}
		if m == nil {
			r.lose(n.block, Range{place.first, place.last})
			continue
		}
		for _, s := range r.spans[child] {
			r.lose(n.block, s)
		}
		kids = append(kids, kid{n.key(i), child, m})
	}
	if len(kids) == 0 {
		return &mended{lost: true}, nil
	}
	kids, moved, err := r.balance(kids)
	if err != nil {
		return nil, err
	}
	if moved || len(kids) < n.n {
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

// balance puts children together that have become too small. What others refer to as well stays for them as it is, so that
// it takes new blocks.
func (r *mender) balance(kids []kid) (_ []kid, moved bool, _ error) {
	for len(kids) > 1 {
		i := slices.IndexFunc(kids, func(k kid) bool { return k.n < leastMappings })
		if i < 0 {
			break
		}
		i = max(i, 1)
		fresh, err := r.join(kids[i-1], kids[i])
		if err != nil {
			return nil, false, err
		}
		kids, moved = slices.Replace(kids, i-1, i+1, fresh...), true
	}
	return kids, moved, nil
}

// join makes one or two nodes of two, once for all parents of both.
func (r *mender) join(a, b kid) ([]kid, error) {
	pair := [3]uint64{a.block, b.block, a.key}
	if fresh, ok := r.joined[pair]; ok {
		return fresh, nil
	}
	fresh, err := r.joinOnce(a, b)
	if err == nil {
		r.joined[pair] = fresh
	}
	return fresh, err
}

func (r *mender) joinOnce(a, b kid) ([]kid, error) {
	var all []pair
	for _, k := range []kid{a, b} {
		n, err := r.reread(k.block)
		if err != nil {
			return nil, err
		}
		for i := range n.n {
			all = append(all, pair{n.key(i), n.uint64(i)})
		}
	}
	if a.level == 0 {
		return r.split(a, len(all), func(from, to int) (*mended, []pair) { return leafOf(all[from:to]), all[from:to] })
	}
	kids := make([]kid, len(all))
	for i, p := range all {
		kids[i] = kid{p.key, p.value, r.nodes[p.value]}
	}
	kids, _, err := r.balance(kids)
	if err != nil {
		return nil, err
	}
	return r.split(a, len(kids), func(from, to int) (*mended, []pair) { return internalOf(kids[from:to]), pairsOf(kids[from:to]) })
}

// split writes n entries into one node or two.
func (r *mender) split(like kid, n int, part func(from, to int) (*mended, []pair)) ([]kid, error) {
	cuts := []int{0, n}
	if n > maxEntries(childSize) {
		cuts = []int{0, n / 2, n}
	}
	var fresh []kid
	for i := range len(cuts) - 1 {
		m, entries := part(cuts[i], cuts[i+1])
		block, err := r.take()
		if err != nil {
			return nil, err
		}
		key := like.key
		if i > 0 {
			key = entries[0].key
		}
		if err := r.writeNode(block, m.level, entries); err != nil {
			return nil, err
		}
		r.nodes[block] = m
		fresh = append(fresh, kid{key, block, m})
	}
	return fresh, nil
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

// findUsed notes which blocks the old trees refer to, before anything is changed in them.
func (r *mender) findUsed() error {
	r.used = blockStates{}
	w := walker{m: r.m, ctx: r.ctx, v: &usedBlocks{r.used}}
	for _, d := range r.roots {
		if _, err := w.walk(d.root, mappingTree, d.id); err != nil {
			return err
		}
	}
	return nil
}

// take is a block to which the old trees do not refer.
func (r *mender) take() (uint64, error) {
	for r.next++; r.next < r.blocks; r.next++ {
		if !r.used.has(r.next) && !r.fixed[r.next] {
			return r.next, nil
		}
	}
	return 0, ErrNoRoom
}

// usedBlocks collects what trees refer to.
type usedBlocks struct{ states blockStates }

func (u *usedBlocks) reference(block uint64, at place) (bool, uint64) {
	return slices.Contains(at.above, block) || u.states.add(block), 0
}

// lost has a node looked into again that is whole and only does not belong where it was met.
func (u *usedBlocks) lost(d *Damage) {
	if d.misplaced && !errors.Is(d.Cause, ErrLoop) {
		u.states.remove(d.Block)
	}
}

func (u *usedBlocks) node(node, place)    {}
func (u *usedBlocks) done(uint64, uint64) {}
