package thinmeta

import "slices"

// This file puts nodes of mappings together that have become too small. What others refer to as well stays for them as it is, so that it takes new
// blocks; what nobody else refers to gives its own.

// balance puts children together that have become too small.
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
	both := r.used.shared(a.block) && r.used.shared(b.block)
	pair := [3]uint64{a.block, b.block, a.key}
	if fresh, ok := r.joined[pair]; ok && both {
		return fresh, nil
	}
	fresh, err := r.joinOnce(a, b)
	if err == nil && both {
		r.joined[pair] = fresh
		for _, k := range fresh {
			r.used.add(k.block) // the next parent's as well
		}
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
		r.leave(k, n)
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

// leave is a node that one of its parents does not refer to any more: what is in it goes elsewhere. Its block is free, or others go on
// referring to it, and share what is below it with that elsewhere.
func (r *mender) leave(k kid, n node) {
	if !r.used.shared(k.block) {
		r.used.remove(k.block)
		r.free = append(r.free, k.block)
		return
	}
	r.shareChildren(n)
}

// shareChildren counts another parent of all children of a node.
func (r *mender) shareChildren(n node) {
	for i := 0; !n.leaf && i < n.n; i++ {
		r.used.add(n.uint64(i))
	}
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
		key := like.key
		if i > 0 {
			key = entries[0].key
		}
		block, err := r.put(m, entries)
		if err != nil {
			return nil, err
		}
		fresh = append(fresh, kid{key, block, m})
	}
	return fresh, nil
}

// put writes a node into a free block.
func (r *mender) put(m *mended, entries []pair) (uint64, error) {
	block, err := r.take()
	if err != nil {
		return 0, err
	}
	r.nodes[block] = m
	return block, r.writeNode(block, m.level, entries)
}

// take is a block to which the trees do not refer, from now on once.
func (r *mender) take() (uint64, error) {
	if n := len(r.free); n > 0 {
		block := r.free[n-1]
		r.free = r.free[:n-1]
		r.used.add(block)
		return block, nil
	}
	for r.next++; r.next < r.blocks; r.next++ {
		if !r.used.has(r.next) && !r.fixed[r.next] {
			r.used.add(r.next)
			return r.next, nil
		}
	}
	return 0, ErrNoRoom
}
