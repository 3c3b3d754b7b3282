package thinmeta

import "context"

// cursor goes through a tree in the order of its keys. It stands before the
// items that it has not passed: subtrees, which can be entered or passed
// unread, and entries.
type cursor struct {
	m     *Metadata
	at    place // of the root
	stack []frame
}

// frame is a node on the way to the item, and which of its entries it is.
type frame struct {
	node
	place
	i int
}

// item is a subtree, or an entry of a leaf.
type item struct {
	entry bool
	block uint64 // of a subtree
	depth int    // nodes above
	// first and last bound the keys of a subtree; an entry has just one.
	first, last uint64
	leaf        node
	i           int
}

func (m *Metadata) cursor(root uint64, tree treeType, device uint64) *cursor {
	at := place{tree: tree, device: device, last: maxKey}
	return &cursor{m: m, at: at, stack: []frame{{node: rootHolder(root), place: at}}}
}

// rootHolder stands for what refers to the root, as if it was a node.
func rootHolder(root uint64) node {
	b := make([]byte, nodeHeader+8+childSize)
	for i := range childSize {
		b[nodeHeader+8+i] = byte(root >> (8 * i))
	}
	return node{b: b, n: 1, values: nodeHeader + 8, size: childSize}
}

// item returns what the cursor stands before.
func (c *cursor) item() (item, bool) {
	if len(c.stack) == 0 {
		return item{}, false
	}
	f := &c.stack[len(c.stack)-1]
	it := item{entry: f.leaf, depth: len(c.stack) - 1}
	if f.leaf {
		it.first = f.key(f.i)
		it.last, it.leaf, it.i = it.first, f.node, f.i
		return it, true
	}
	it.first, it.last = f.childKeys(f.i, f.place.last)
	it.block = f.uint64(f.i)
	return it, true
}

// next passes the item.
func (c *cursor) next() {
	for len(c.stack) > 0 {
		f := &c.stack[len(c.stack)-1]
		if f.i++; f.i < f.n {
			return
		}
		c.stack = c.stack[:len(c.stack)-1]
	}
}

// enter goes from a subtree to its first item. Where that fails, the cursor
// stays where it is; see [Metadata.load] for the error.
func (c *cursor) enter(ctx context.Context) error {
	f := &c.stack[len(c.stack)-1]
	at := c.at
	if len(c.stack) > 1 {
		at = f.below(f.block).child(f.node, f.i)
	}
	n, err := c.m.load(ctx, f.uint64(f.i), at)
	if err != nil {
		return err
	}
	if n.n == 0 {
		c.next()
		return nil
	}
	c.stack = append(c.stack, frame{node: n, place: at})
	return nil
}

// entry goes to the next entry, which may be the one that the cursor stands
// before. The error is of the subtree that could not be entered, and the
// cursor stands behind it; false is the end.
func (c *cursor) entry(ctx context.Context) (item, bool, error) {
	for {
		it, ok := c.item()
		if !ok || it.entry {
			return it, ok, nil
		}
		if err := c.enter(ctx); err != nil {
			c.next()
			return it, true, err
		}
	}
}

// find passes everything with lower keys and returns the entry with the key.
func (c *cursor) find(ctx context.Context, key uint64) (item, bool, error) {
	for {
		it, ok := c.item()
		switch {
		case !ok || it.first > key:
			return item{}, false, nil
		case it.last < key:
			c.next()
		case it.entry:
			return it, true, nil
		default:
			if err := c.enter(ctx); err != nil {
				c.next()
				return it, false, err
			}
		}
	}
}

// placeOf is the place of what an entry that the cursor stands before leads to.
func (c *cursor) placeOf(it item) place {
	f := c.stack[len(c.stack)-1]
	return f.below(f.block).at(it.first)
}
