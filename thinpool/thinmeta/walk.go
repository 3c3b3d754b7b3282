package thinmeta

import (
	"context"
	"errors"
)

// visitor is told what a walker comes across.
type visitor interface {
	// reference is each reference to a node. The answer is whether to read it,
	// and if not, how many entries are known to be below it.
	reference(block uint64, at place) (enter bool, entries uint64)
	// node is each node that was read.
	node(n node, at place)
	// lost is each node that could not be read.
	lost(d *Damage)
	// done is each node after everything below it.
	done(block uint64, entries uint64)
}

// walker goes through trees that share nodes. It calls itself for each level
// of a tree, so maxDepth times at most.
type walker struct {
	m   *Metadata
	ctx context.Context
	v   visitor
	err error // the context's
}

// walk goes through the tree below a root and returns how many entries it has.
func (w *walker) walk(root uint64, tree treeType, device uint64) (uint64, error) {
	n := w.visit(root, place{tree: tree, device: device, last: maxKey})
	return n, w.err
}

func (w *walker) visit(block uint64, at place) uint64 {
	if w.err != nil {
		return 0
	}
	if enter, entries := w.v.reference(block, at); !enter {
		return entries
	}
	n, err := w.m.load(w.ctx, block, at)
	if err != nil {
		if d := (*Damage)(nil); errors.As(err, &d) {
			w.v.lost(d)
		} else {
			w.err = err
		}
		return 0
	}
	w.v.node(n, at)
	entries := uint64(n.n)
	if !n.leaf {
		entries = 0
		below := at.below(n.block)
		for i := range n.n {
			entries += w.visit(n.uint64(i), below.child(n, i))
		}
	}
	if w.err == nil {
		w.v.done(block, entries)
	}
	return entries
}
