package metagen

import (
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
)

// Info says what a block of an image is.
type Info struct {
	Kind Kind
	// Tree is "devices", "mappings", "details", "data bitmaps", "data counts",
	// "metadata bitmaps" or "metadata counts".
	Tree string
	// Level is 0 for a leaf.
	Level int
	Root  bool
	// References is how often it is referred to.
	References uint32
}

// Image is metadata as it lies on disk.
type Image struct {
	Bytes  []byte
	Blocks map[uint64]Info // those in use
	Held   uint64          // the superblock of the metadata snapshot
}

// ReadAt is that of [io.ReaderAt].
func (im *Image) ReadAt(b []byte, off int64) (int, error) {
	if off >= int64(len(im.Bytes)) {
		return 0, io.EOF
	}
	n := copy(b, im.Bytes[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

// Block are the bytes of a block, to be changed.
func (im *Image) Block(block uint64) []byte { return im.Bytes[block*blockSize:][:blockSize] }

// Seal makes the number and the checksum of a block right.
func (im *Image) Seal(block uint64) { seal(im.Block(block), block, im.Blocks[block].Kind) }

// Clone is an image of its own.
func (im *Image) Clone() *Image {
	return &Image{slices.Clone(im.Bytes), maps.Clone(im.Blocks), im.Held}
}

// Find returns blocks in order.
func (im *Image) Find(want func(Info) bool) []uint64 {
	var found []uint64
	for _, block := range slices.Sorted(maps.Keys(im.Blocks)) {
		if want(im.Blocks[block]) {
			found = append(found, block)
		}
	}
	return found
}

// Image writes the pool.
func (p *Pool) Image() *Image {
	w := &writer{
		pool: p, image: &Image{Bytes: make([]byte, p.MetadataBlocks*blockSize), Blocks: map[uint64]Info{}},
		nodes: map[string]uint64{}, leaves: map[*leaf]uint64{}, data: map[uint64]uint32{},
	}
	if p.Seed != 0 {
		w.random = rand.New(rand.NewPCG(p.Seed, 2))
	}
	w.write()
	return w.image
}

type writer struct {
	pool   *Pool
	image  *Image
	random *rand.Rand
	next   uint64
	nodes  map[string]uint64 // by their contents: equal ones are one
	leaves map[*leaf]uint64
	data   map[uint64]uint32 // references
}

// take is a free block.
func (w *writer) take(info Info) uint64 {
	block := w.next
	for {
		if w.random != nil && block > 0 {
			block = w.random.Uint64N(w.pool.MetadataBlocks)
		}
		if _, used := w.image.Blocks[block]; !used {
			break
		}
		block++
	}
	if block >= w.pool.MetadataBlocks {
		panic("no metadata blocks left")
	}
	w.next = block + 1
	w.image.Blocks[block] = info
	return block
}

// refer counts a reference.
func (w *writer) refer(block uint64) {
	info := w.image.Blocks[block]
	info.References++
	w.image.Blocks[block] = info
}

func (w *writer) write() {
	super := w.take(Info{Kind: Superblock, Root: true})
	w.refer(super)
	s := superblock{pool: w.pool, generation: generation{w.pool.Time, w.pool.TransactionID, w.pool.devices}}
	s.mappings, s.details = w.generation(s.generation)
	if w.pool.held != nil {
		s.held = w.take(Info{Kind: Superblock, Root: true})
		w.refer(s.held)
		h := superblock{pool: w.pool, generation: *w.pool.held}
		h.mappings, h.details = w.generation(h.generation)
		copy(w.image.Block(s.held), h.bytes())
		w.image.Seal(s.held)
		w.image.Held = s.held
	}
	s.data = w.dataSpace()
	s.metadata = w.metadataSpace()
	copy(w.image.Block(super), s.bytes())
	w.image.Seal(super)
}

// generation writes the trees of a moment and refers to their roots.
func (w *writer) generation(g generation) (mappings, details uint64) {
	var roots, facts []record
	for _, id := range slices.Sorted(maps.Keys(g.devices)) {
		d := g.devices[id]
		roots = append(roots, record{id, u64(w.mappings(d))})
		fact := slices.Concat(u64(d.mapped), u64(d.transactionID), le.AppendUint32(nil, d.created), le.AppendUint32(nil, d.snapped))
		facts = append(facts, record{id, fact})
	}
	mappings = w.tree("devices", 8, roots, func(r record) { w.refer(le.Uint64(r.value)) })
	details = w.tree("details", 24, facts, nil)
	w.refer(mappings)
	w.refer(details)
	return mappings, details
}

// mappings writes the tree of a device.
func (w *writer) mappings(d *device) uint64 {
	var children []record
	for _, l := range d.leaves {
		block, ok := w.leaves[l]
		if !ok {
			records := make([]record, len(l.entries))
			for i, e := range l.entries {
				records[i] = record{e.key, u64(e.value)}
			}
			block = w.node("mappings", 0, 8, records, func(r record) { w.data[le.Uint64(r.value)>>24]++ })
			w.leaves[l] = block
		}
		children = append(children, record{l.entries[0].key, u64(block)})
	}
	if len(children) == 0 {
		return w.root(w.node("mappings", 0, 8, nil, nil))
	}
	return w.above("mappings", children)
}

// tree writes a tree and returns its root. What the records refer to is
// referred to by each new node.
func (w *writer) tree(name string, valueSize int, records []record, refer func(record)) uint64 {
	if len(records) == 0 {
		return w.root(w.node(name, 0, valueSize, nil, nil))
	}
	var children []record
	for _, part := range parts(len(records), maxRecords(valueSize)) {
		block := w.node(name, 0, valueSize, records[part.begin:part.end], refer)
		children = append(children, record{records[part.begin].key, u64(block)})
	}
	return w.above(name, children)
}

// above writes the internal nodes above nodes.
func (w *writer) above(name string, children []record) uint64 {
	for level := 1; len(children) > 1; level++ {
		var parents []record
		for _, part := range parts(len(children), maxChildren) {
			block := w.node(name, level, 8, children[part.begin:part.end], func(r record) { w.refer(le.Uint64(r.value)) })
			parents = append(parents, record{children[part.begin].key, u64(block)})
		}
		children = parents
	}
	return w.root(le.Uint64(children[0].value))
}

func (w *writer) root(block uint64) uint64 {
	info := w.image.Blocks[block]
	info.Root = true
	w.image.Blocks[block] = info
	return block
}

// node writes a node, unless there is one with the same contents.
func (w *writer) node(name string, level, valueSize int, records []record, refer func(record)) uint64 {
	b := nodeBytes(level == 0, valueSize, records)
	key := fmt.Sprintf("%s %d ", name, level) + string(b)
	if block, ok := w.nodes[key]; ok {
		return block
	}
	block := w.take(Info{Kind: Node, Tree: name, Level: level})
	w.nodes[key] = block
	copy(w.image.Block(block), b)
	w.image.Seal(block)
	for _, r := range records {
		if refer != nil {
			refer(r)
		}
	}
	return block
}
