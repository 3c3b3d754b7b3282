package thinmeta

import (
	"maps"
	"slices"
)

// This file finds the mappings of devices to which the device tree does not lead any more, as blocks of it are lost. The space map says what is in use: a node of
// mappings that is, and to which too few others refer, is where some device's mappings begin. Whose, is told by the nodes of the device tree that are left; else by the
// count of its mappings, where no other has as many. What is told by nodes of an earlier device tree alone, which lie in free blocks, is likely, and not proven.

// finder looks for what belongs to devices that are missing.
type finder struct {
	r       *mender
	missing map[uint64]bool // devices of which there are details
	inUse   refTable        // what the space map says
	refers  refTable        // what was found to refer to nodes of mappings
	nodes   map[uint64]bool // blocks that are in use: whether they are nodes of mappings
	heads   []node          // nodes of a device tree that are in use
	votes   map[uint64]map[uint64]bool
}

// lostRoot is where the mappings of some devices begin.
type lostRoot struct {
	block   uint64
	devices int // how many have it
}

// find adds devices to those that the device tree leads to. Where the space map cannot be read, there is nothing to go by, and none are.
func (r *mender) find() error {
	f := finder{
		r: r, missing: map[uint64]bool{}, inUse: newRefTable(), refers: newRefTable(), nodes: map[uint64]bool{}, votes: map[uint64]map[uint64]bool{},
	}
	for id := range r.details {
		f.missing[id] = true
	}
	for _, d := range r.roots {
		delete(f.missing, d.id)
	}
	if len(f.missing) == 0 || r.m.super.HeldRoot != 0 { // a metadata snapshot has a device tree of its own
		return nil
	}
	for run, err := range r.m.References(r.ctx, MetadataSpace) {
		if r.ctx.Err() != nil {
			return err
		}
		if err != nil {
			return nil
		}
		for i := range run.Length {
			f.inUse.set(run.Begin+i, run.Count)
		}
	}
	if err := f.scan(); err != nil {
		return err
	}
	f.take()
	roots := f.lostRoots()
	counts, err := f.counts(roots)
	if err != nil {
		return err
	}
	f.assign(roots, counts)
	slices.SortFunc(r.roots, func(a, b deviceRoot) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	return nil
}

// scan looks at all blocks.
func (f *finder) scan() error {
	blocks := f.r.m.blocks
	for block := uint64(1); block < f.r.blocks; block++ {
		if block%1024 == 0 && f.r.ctx.Err() != nil {
			return f.r.ctx.Err()
		}
		b, err := blocks.get(block, kindNode)
		if err != nil || f.r.fixed[block] {
			continue
		}
		n, err := parseNode(b, block, mappingTree.valueSize)
		if err != nil || n.checkKeys(0, maxKey) != nil {
			continue
		}
		used := f.inUse.get(block) > 0
		switch {
		case f.ofDevices(n):
			f.vote(n)
			if used && n.n > 1 {
				n.b = slices.Clone(n.b)
				f.heads = append(f.heads, n)
				continue
			}
		case !used:
			continue
		}
		if used {
			f.nodes[block] = true
		}
	}
	return f.count()
}

// ofDevices tells whether a leaf may be one of a device tree: a mapping's value is below 2^24 for one data block alone, and there are fewer metadata blocks.
func (f *finder) ofDevices(n node) bool {
	for i := range n.n {
		if v := n.uint64(i); v == 0 || v >= f.r.blocks || n.key(i) > timeMask {
			return false
		}
	}
	return n.leaf && n.n > 0
}

// vote notes what a node of some device tree, of now or of earlier, says of devices that are missing.
func (f *finder) vote(n node) {
	for i := range n.n {
		id := n.key(i)
		if !f.missing[id] {
			continue
		}
		if f.votes[id] == nil {
			f.votes[id] = map[uint64]bool{}
		}
		f.votes[id][n.uint64(i)] = true
	}
}

// count counts the references to nodes of mappings.
func (f *finder) count() error {
	for _, d := range f.r.roots {
		f.refers.add(d.root)
	}
	for _, block := range slices.Sorted(maps.Keys(f.nodes)) {
		if err := f.r.ctx.Err(); err != nil {
			return err
		}
		n, ok := f.load(block)
		if f.nodes[block] = ok && f.ofMappings(n, maxDepth); !f.nodes[block] {
			continue
		}
		for i := 0; !n.leaf && i < n.n; i++ {
			f.refers.add(n.uint64(i))
		}
	}
	return nil
}

func (f *finder) load(block uint64) (node, bool) {
	b, err := f.r.m.blocks.get(block, kindNode)
	if err != nil || f.r.fixed[block] {
		return node{}, false
	}
	n, err := parseNode(b, block, mappingTree.valueSize)
	return n, err == nil
}

// ofMappings tells whether a node leads to leaves of mappings: internal nodes are alike in all trees. Some child that can be read must do.
func (f *finder) ofMappings(n node, depth int) bool {
	if n.leaf || depth == 0 {
		return n.leaf
	}
	for i := range n.n {
		if child, ok := f.load(n.uint64(i)); ok {
			return f.ofMappings(child, depth-1)
		}
	}
	return false
}

// take takes what nodes of the device tree say that are in use: they are those of now, unless two are of one device.
func (f *finder) take() {
	said := map[uint64]int{}
	for _, n := range f.heads {
		for i := range n.n {
			said[n.key(i)]++
		}
	}
	for _, n := range f.heads {
		f.r.fixed[n.block] = true
		for i := range n.n {
			id, root := n.key(i), n.uint64(i)
			if said[id] == 1 && f.missing[id] {
				f.refers.add(root)
				f.give(id, root)
			}
		}
	}
}

// give gives a device its mappings.
func (f *finder) give(id, root uint64) {
	f.r.roots = append(f.r.roots, deviceRoot{id, root, place{tree: mappingTree, device: id, last: maxKey}})
	delete(f.missing, id)
}

func (f *finder) lostRoots() (roots []lostRoot) {
	for _, block := range slices.Sorted(maps.Keys(f.nodes)) {
		if used, refers := f.inUse.get(block), f.refers.get(block); f.nodes[block] && used > refers {
			roots = append(roots, lostRoot{block, int(used - refers)})
		}
	}
	return roots
}

// counts returns how many mappings are below each root.
func (f *finder) counts(roots []lostRoot) (map[uint64]uint64, error) {
	v := counter{}
	w := walker{m: f.r.m, ctx: f.r.ctx, v: v}
	counts := map[uint64]uint64{}
	for _, root := range roots {
		var err error
		if counts[root.block], err = w.walk(root.block, mappingTree, 0); err != nil {
			return nil, err
		}
	}
	return counts, nil
}

// counter reads each node once. It is a [visitor].
type counter map[uint64]uint64

func (c counter) reference(block uint64, _ place) (bool, uint64) {
	entries, seen := c[block]
	return !seen, entries
}

func (c counter) node(node, place) {}

func (c counter) lost(*Damage) {}

func (c counter) done(block, entries uint64) { c[block] = entries }

// assign gives missing devices the roots that have as many mappings as they have.
func (f *finder) assign(roots []lostRoot, counts map[uint64]uint64) {
	byCount, wanted, all := map[uint64][]lostRoot{}, map[uint64][]uint64{}, 0
	for _, root := range roots {
		byCount[counts[root.block]] = append(byCount[counts[root.block]], root)
		all += root.devices
	}
	whole := all == len(f.missing) // else there are roots that are none, or some are lost
	for _, id := range slices.Sorted(maps.Keys(f.missing)) {
		n := f.r.details[id].MappedBlocks
		wanted[n] = append(wanted[n], id)
	}
	for n, ids := range wanted {
		group := byCount[n]
		switch {
		case whole && len(group) == 1 && group[0].devices == len(ids):
			for _, id := range ids {
				f.give(id, group[0].block)
			}
		case whole && n == 0 && devicesOf(group) == len(ids): // one is like the other
			for _, root := range group {
				for range root.devices {
					f.give(ids[0], root.block)
					ids = ids[1:]
				}
			}
		default:
			f.elect(ids, group)
		}
	}
}

func devicesOf(roots []lostRoot) (n int) {
	for _, root := range roots {
		n += root.devices
	}
	return n
}

// elect gives devices what earlier device trees have said, if all that did say the same and no more devices want a root than have it.
func (f *finder) elect(ids []uint64, group []lostRoot) {
	want := map[uint64][]uint64{}
	for _, id := range ids {
		var only []uint64
		for _, root := range group {
			if f.votes[id][root.block] {
				only = append(only, root.block)
			}
		}
		if len(only) == 1 {
			want[only[0]] = append(want[only[0]], id)
		}
	}
	for _, root := range group {
		if ids := want[root.block]; len(ids) <= root.devices {
			for _, id := range ids {
				f.give(id, root.block)
				f.r.unproven[id] = true
			}
		}
	}
}
