package metagen

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// Effect is what damage amounts to.
type Effect uint8

// The effects.
const (
	Damaged Effect = iota // data is lost, or will be
	Leaked                // space is lost
	Stale                 // a number is wrong that nothing depends on
)

// Damage is a way to damage an image.
type Damage struct {
	Name   string
	Effect Effect
	// Apply tells whether the image had what is to be damaged.
	Apply func(im *Image, r *rand.Rand) bool
}

// target is a kind of block.
type target struct {
	name string
	is   func(Info) bool
}

func ofTree(tree string, kind Kind, level int) func(Info) bool {
	return func(i Info) bool { return i.Tree == tree && i.Kind == kind && i.Level == level && i.References > 0 }
}

var nodes = []target{
	{"device tree", ofTree("devices", Node, 0)},
	{"leaf of mappings", func(i Info) bool { return ofTree("mappings", Node, 0)(i) && !i.Root }},
	{"shared leaf of mappings", func(i Info) bool { return ofTree("mappings", Node, 0)(i) && i.References > 1 && !i.Root }},
	{"root of mappings", ofTree("mappings", Node, 1)},
	{"high root of mappings", ofTree("mappings", Node, 2)},
	{"details", ofTree("details", Node, 0)},
	{"data bitmap tree", ofTree("data bitmaps", Node, 0)},
	{"data count tree", ofTree("data counts", Node, 0)},
	{"metadata count tree", ofTree("metadata counts", Node, 0)},
}

var others = []target{
	{"data bitmap", ofTree("data bitmaps", Bitmap, 0)},
	{"metadata index", ofTree("metadata bitmaps", Index, 0)},
	{"metadata bitmap", ofTree("metadata bitmaps", Bitmap, 0)},
}

// pick is one block of a kind.
func (t target) pick(im *Image, r *rand.Rand) (uint64, bool) {
	found := im.Find(t.is)
	if len(found) == 0 {
		return 0, false
	}
	return found[r.IntN(len(found))], true
}

// on makes damage to one block of a kind.
func (t target) on(name string, effect Effect, change func(im *Image, block uint64, r *rand.Rand) bool) Damage {
	return Damage{name + " in " + t.name, effect, func(im *Image, r *rand.Rand) bool {
		block, ok := t.pick(im, r)
		return ok && change(im, block, r)
	}}
}

// sealed changes the bytes of a block, and then makes its checksum right.
func sealed(change func(b []byte, r *rand.Rand)) func(*Image, uint64, *rand.Rand) bool {
	return func(im *Image, block uint64, r *rand.Rand) bool {
		change(im.Block(block), r)
		im.Seal(block)
		return true
	}
}

// Damages are all ways.
func Damages() []Damage {
	all := slices.Concat(superblockDamages(), deviceDamages(), mappingDamages(), spaceDamages())
	for _, t := range slices.Concat(nodes, others) {
		all = append(all, blockDamages(t)...)
	}
	for _, t := range nodes {
		all = append(all, nodeDamages(t)...)
	}
	return all
}

// blockDamages are what disks do.
func blockDamages(t target) []Damage {
	return []Damage{
		t.on("flipped bit", Damaged, func(im *Image, block uint64, r *rand.Rand) bool {
			im.Block(block)[r.IntN(blockSize)] ^= 1 << r.IntN(8)
			return true
		}),
		t.on("zeros", Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			clear(im.Block(block))
			return true
		}),
		t.on("other number", Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			seal(im.Block(block), block+1, im.Blocks[block].Kind)
			return true
		}),
		t.on("other kind", Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			kind := Node
			if im.Blocks[block].Kind == Node {
				kind = Bitmap
			}
			seal(im.Block(block), block, kind)
			return true
		}),
	}
}

// nodeDamages are what software does.
func nodeDamages(t target) []Damage {
	all := []Damage{
		t.on("too many entries", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[16:], le.Uint32(b[20:])+1) })),
		t.on("4 billion entries", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[16:], 1<<32-1) })),
		t.on("4 billion times room", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[20:], 1<<32-1) })),
		t.on("other size of values", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[24:], le.Uint32(b[24:])+4) })),
		t.on("no flags", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[4:], 0) })),
		t.on("other level", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[4:], 3-le.Uint32(b[4:])) })),
		t.on("keys in disorder", Damaged, func(im *Image, block uint64, r *rand.Rand) bool {
			b := im.Block(block)
			if le.Uint32(b[16:]) < 3 {
				return false
			}
			i := 1 + r.IntN(int(le.Uint32(b[16:]))-2)
			le.PutUint64(b[nodeHeader+8*i:], le.Uint64(b[nodeHeader+8*(i-1):]))
			im.Seal(block)
			return true
		}),
	}
	if strings.HasSuffix(t.name, "root of mappings") {
		all = append(all, childDamages(t)...)
	}
	return all
}

// childDamages are of references to nodes.
func childDamages(t target) []Damage {
	child := func(name string, value func(im *Image, block uint64, old uint64) uint64) Damage {
		return t.on(name, Damaged, func(im *Image, block uint64, r *rand.Rand) bool {
			b := im.Block(block)
			at := b[nodeHeader+8*maxChildren+8*r.IntN(int(le.Uint32(b[16:]))):]
			le.PutUint64(at, value(im, block, le.Uint64(at)))
			im.Seal(block)
			return true
		})
	}
	return []Damage{
		child("child out of range", func(im *Image, _, _ uint64) uint64 { return uint64(len(im.Bytes) / blockSize) }),
		child("child far out of range", func(*Image, uint64, uint64) uint64 { return 1<<64 - 1 }),
		child("itself as child", func(_ *Image, block, _ uint64) uint64 { return block }),
		child("superblock as child", func(*Image, uint64, uint64) uint64 { return 0 }),
		child("free block as child", func(im *Image, _, _ uint64) uint64 {
			block := uint64(1)
			for im.Blocks[block].References > 0 {
				block++
			}
			return block
		}),
		child("child of another tree", func(im *Image, _, _ uint64) uint64 {
			return im.Find(ofTree("details", Node, 0))[0]
		}),
		t.on("itself as grandchild", Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			child := le.Uint64(im.Block(block)[nodeHeader+8*maxChildren:])
			if im.Blocks[child].Level == 0 {
				return false
			}
			le.PutUint64(im.Block(child)[nodeHeader+8*maxChildren:], block)
			im.Seal(child)
			return true
		}),
		t.on("same child twice", Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			b := im.Block(block)
			if le.Uint32(b[16:]) < 2 {
				return false
			}
			values := b[nodeHeader+8*maxChildren:]
			copy(values[8:16], values[:8])
			im.Seal(block)
			return true
		}),
		t.on("key above that of the child", Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			b := im.Block(block)
			le.PutUint64(b[nodeHeader:], le.Uint64(b[nodeHeader:])+1)
			im.Seal(block)
			return true
		}),
	}
}

func superblockDamages() []Damage {
	field := func(name string, effect Effect, change func(b []byte)) Damage {
		return Damage{"superblock with " + name, effect, func(im *Image, _ *rand.Rand) bool {
			change(im.Block(0))
			im.Seal(0)
			return true
		}}
	}
	add := func(at int, n uint64) func([]byte) {
		return func(b []byte) { le.PutUint64(b[at:], le.Uint64(b[at:])+n) }
	}
	all := []Damage{
		field("wrong count of data blocks in use", Stale, add(72, 1)),
		field("wrong count of metadata blocks in use", Stale, add(200, 1)),
		field("more data blocks than bitmaps", Damaged, add(64, 1<<40)),
		field("fewer data blocks than there are", Damaged, func(b []byte) { le.PutUint64(b[64:], 1) }),
	}
	for name, at := range map[string]int{"devices": 320, "details": 328, "data bitmaps": 80, "data counts": 88, "metadata index": 208, "metadata counts": 216} {
		for _, to := range []uint64{0, 1 << 20, 1<<64 - 1} {
			all = append(all, field(fmt.Sprintf("%s at block %d", name, to), Damaged, func(b []byte) { le.PutUint64(b[at:], to) }))
		}
	}
	slices.SortFunc(all, func(a, b Damage) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return append(all, Damage{"end cut off", Damaged, func(im *Image, _ *rand.Rand) bool {
		last := slices.Max(im.Find(ofTree("mappings", Node, 0)))
		im.Bytes = im.Bytes[:last*blockSize+512]
		return true
	}})
}

func deviceDamages() []Damage {
	devices, details := nodes[0], nodes[5]
	drop := func(t target, name string) Damage {
		return t.on(name, Damaged, func(im *Image, block uint64, _ *rand.Rand) bool {
			b := im.Block(block)
			n := le.Uint32(b[16:])
			if info := im.Blocks[block]; !info.Root || info.References > 1 {
				return false // another damage: too few entries
			}
			le.PutUint32(b[16:], n-1)
			im.Seal(block)
			return true
		})
	}
	return []Damage{
		drop(devices, "device without mappings"),
		drop(details, "device without details"),
		details.on("wrong count of mappings", Stale, sealed(func(b []byte, _ *rand.Rand) {
			at := b[nodeHeader+8*maxRecords(24):]
			le.PutUint64(at, le.Uint64(at)+1)
		})),
	}
}

func mappingDamages() []Damage {
	leaf := nodes[1]
	value := func(name string, effect Effect, change func(values []byte, i int)) Damage {
		return leaf.on(name, effect, sealed(func(b []byte, r *rand.Rand) {
			change(b[nodeHeader+8*maxMappings:], r.IntN(int(le.Uint32(b[16:]))-1))
		}))
	}
	return []Damage{
		value("data block out of range", Damaged, func(v []byte, i int) { le.PutUint64(v[8*i:], 1<<63) }),
		value("two mappings to one data block", Damaged, func(v []byte, i int) { copy(v[8*i:8*i+8], v[8*i+8:8*i+16]) }),
		value("mapping to a free data block", Damaged, func(v []byte, i int) { le.PutUint64(v[8*i:], 99_999<<24) }),
		leaf.on("lost mapping", Leaked, func(im *Image, block uint64, _ *rand.Rand) bool {
			b := im.Block(block)
			n := le.Uint32(b[16:])
			if n <= maxMappings/3 {
				return false
			}
			le.PutUint32(b[16:], n-1)
			im.Seal(block)
			return true
		}),
		leaf.on("too few entries", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[16:], 1) })),
		leaf.on("no entries", Damaged, sealed(func(b []byte, _ *rand.Rand) { le.PutUint32(b[16:], 0) })),
	}
}

func spaceDamages() []Damage {
	// count changes the references of the first block that has some number of them.
	count := func(t target, name string, effect Effect, old, new uint32) Damage {
		return Damage{name + " in " + t.name, effect, func(im *Image, _ *rand.Rand) bool {
			for _, block := range im.Find(t.is) {
				if i, ok := findPair(im.Block(block), old); ok {
					setPair(im.Block(block), i, new)
					im.Seal(block)
					return true
				}
			}
			return false
		}}
	}
	var all []Damage
	for _, t := range []target{others[0], others[2]} {
		all = append(all,
			count(t, "block in use is free", Damaged, 1, 0),
			count(t, "free block is in use", Leaked, 0, 1),
			count(t, "one reference instead of two", Damaged, 2, 1),
			count(t, "two references instead of one", Leaked, 1, 2),
			count(t, "two references instead of many", Damaged, 3, 2),
			count(t, "many references instead of one", Damaged, 1, 3),
		)
	}
	for _, t := range []target{nodes[7], nodes[8]} {
		value := func(name string, effect Effect, change func(n uint32) uint32) Damage {
			return t.on(name, effect, func(im *Image, block uint64, r *rand.Rand) bool {
				b := im.Block(block)
				if le.Uint32(b[16:]) == 0 {
					return false
				}
				at := b[nodeHeader+8*maxRecords(4)+4*r.IntN(int(le.Uint32(b[16:]))):]
				le.PutUint32(at, change(le.Uint32(at)))
				im.Seal(block)
				return true
			})
		}
		all = append(all,
			value("a reference too few", Damaged, func(n uint32) uint32 { return n - 1 }),
			value("a reference too many", Leaked, func(n uint32) uint32 { return n + 1 }),
			value("no references", Damaged, func(uint32) uint32 { return 0 }),
		)
	}
	return append(all, indexDamages()...)
}

// findPair is the first entry of a bitmap with a count. The first 4000 are always within the space.
func findPair(b []byte, count uint32) (uint64, bool) {
	for i := range uint64(4000) {
		if raw := uint32(b[mapHeader+i/4]>>(i%4*2)) & 3; raw>>1|raw&1<<1 == count {
			return i, true
		}
	}
	return 0, false
}

func indexDamages() []Damage {
	var all []Damage
	for t, at := range map[*target]int{&nodes[6]: nodeHeader + 8*168, &others[1]: mapHeader} {
		field := func(name string, effect Effect, change func(entry []byte)) Damage {
			return t.on(name, effect, sealed(func(b []byte, _ *rand.Rand) { change(b[at:]) }))
		}
		all = append(all,
			field("wrong count of free blocks", Stale, func(e []byte) { le.PutUint32(e[8:], le.Uint32(e[8:])-1) }),
			field("first free block beyond it", Stale, func(e []byte) { le.PutUint32(e[12:], 16320) }),
			field("superblock as bitmap", Damaged, func(e []byte) { le.PutUint64(e, 0) }),
			field("bitmap out of range", Damaged, func(e []byte) { le.PutUint64(e, 1<<60) }),
		)
	}
	return all
}
