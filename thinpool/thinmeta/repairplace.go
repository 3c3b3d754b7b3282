package thinmeta

import (
	"errors"
	"fmt"
)

// This file is about nodes that more than one parent has: each may say something else of the keys that they can have.

// survey looks, before anything is changed, which blocks the trees refer to, and how far the keys below each node go at the most generous of its places:
// a parent that is damaged may cut off what others have.
func (r *mender) survey() error {
	r.used, r.limits = blockStates{}, map[uint64]uint64{}
	for _, d := range r.roots {
		r.used.add(d.root)
		if err := r.surveyNode(d.root, d.at); err != nil {
			return err
		}
	}
	return nil
}

func (r *mender) surveyNode(block uint64, at place) error {
	limit, known := r.limits[block]
	if known && limit >= at.last {
		return nil
	}
	n, err := r.m.load(r.ctx, block, at)
	if d := (*Damage)(nil); errors.As(err, &d) {
		if !d.misplaced {
			r.limits[block] = maxKey
		}
		return nil
	}
	if err != nil {
		return err
	}
	r.limits[block] = at.last
	if n.leaf {
		return nil
	}
	below := at.below(block)
	for i := range n.n {
		child := n.uint64(i)
		switch {
		case !known:
			r.used.add(child)
		case i < n.n-1: // its keys end where those of its neighbour begin
			continue
		}
		if err := r.surveyNode(child, below.child(n, i)); err != nil {
			return err
		}
	}
	return nil
}

// widest is a place with all keys that the node may have at any.
func (r *mender) widest(block uint64, at place) place {
	at.last = max(at.last, r.limits[block])
	return at
}

// fit is a mended node at one place of several: what does not belong there is cut off in a copy.
func (r *mender) fit(block uint64, m *mended, at place) (uint64, *mended, error) {
	if m.n == 0 || m.first >= at.first && m.last <= at.last {
		return block, m, nil
	}
	r.lost.add(at.damage(block, fmt.Errorf("keys %d to %d, while the node above allows %d to %d: %w", m.first, m.last, at.first, at.last, ErrStructure)))
	if m.first < at.first || m.first > at.last || m.level == 0 {
		return 0, nil, nil
	}
	key := [2]uint64{block, at.last}
	if cut, ok := r.cut[key]; ok {
		r.used.add(cut)
		return cut, r.nodes[cut], nil
	}
	cut, mc, err := r.cutOff(block, at)
	if mc != nil {
		r.cut[key] = cut
		r.used.add(cut) // it may have more parents yet
	}
	return cut, mc, err
}

// cutOff copies an internal node without what has keys beyond the place's. The node has some that do not, and stays as it is.
func (r *mender) cutOff(block uint64, at place) (uint64, *mended, error) {
	n, err := r.reread(block)
	if err != nil {
		return 0, nil, err
	}
	r.shareChildren(n)
	var kids []kid
	var lost []Range
	for i := 0; i < n.n && n.key(i) <= at.last; i++ {
		k, below := kid{n.key(i), n.uint64(i), r.nodes[n.uint64(i)]}, at
		if below.first = k.key; k.last > at.last {
			lost = r.spansBefore(block, k.key)
			if k.block, k.mended, err = r.fit(k.block, k.mended, below); err != nil {
				return 0, nil, err
			}
			if k.mended == nil {
				lost = append(lost, Range{k.key, at.last})
				break
			}
			lost = append(lost, r.spans[k.block]...)
		}
		kids = append(kids, k)
	}
	if len(kids) == 0 {
		return 0, nil, nil
	}
	if kids, _, err = r.balance(kids); err != nil {
		return 0, nil, err
	}
	m := internalOf(kids)
	cut, err := r.put(m, pairsOf(kids))
	r.spans[cut] = lost
	return cut, m, err
}

// spansBefore is what is lost below a node before a key.
func (r *mender) spansBefore(block, key uint64) (lost []Range) {
	for _, l := range r.spans[block] {
		if l.First < key {
			lost = append(lost, l)
		}
	}
	return lost
}
