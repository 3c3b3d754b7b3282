package thinmeta

import (
	"cmp"
	"slices"
)

// span is a range of keys, both included.
type span struct{ first, last uint64 }

func (s span) contains(o span) bool { return s.first <= o.first && o.last <= s.last }

// spans are disjoint and sorted.
type spans []span

// merge sorts spans and makes one of those that overlap.
func merge(all []span) spans {
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var out spans
	for _, s := range all {
		if n := len(out); n > 0 && s.first <= out[n-1].last {
			out[n-1].last = max(out[n-1].last, s.last)
			continue
		}
		out = append(out, s)
	}
	return out
}

func (s spans) contains(key uint64) bool {
	i, found := slices.BinarySearchFunc(s, key, func(s span, key uint64) int { return cmp.Compare(s.first, key) })
	return found || i > 0 && s[i-1].last >= key
}

// hiding are the keys that damage hid last, in a tree that is gone through in
// order together with another.
type hiding struct {
	hidden bool
	lost   span
}

// hide adds keys. They follow those that were lost last, or else the other tree
// has passed those.
func (h *hiding) hide(keys span) {
	if h.hidden && h.lost.last+1 == keys.first {
		keys.first = h.lost.first
	}
	h.hidden, h.lost = true, keys
}

func (h *hiding) hides(keys span) bool { return h.hidden && h.lost.contains(keys) }
