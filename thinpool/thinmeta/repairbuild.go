package thinmeta

import (
	"encoding/binary"
	"fmt"
	"iter"
)

// builder writes all but the mappings anew, into blocks that those do not need.
type builder struct {
	*mender
	refs [2]refTable // by Space
	next uint64      // block that may be free
	seen map[uint64]uint64
	bad  error // damage that is left, which there must not be

	mapped map[uint64]uint64 // by device
}

func (b *builder) run() error {
	if err := b.count(); err != nil {
		return err
	}
	if err := b.share(); err != nil {
		return err
	}
	devices, err := b.devices()
	if err != nil {
		return err
	}
	details, err := b.detailsTree()
	if err != nil {
		return err
	}
	data, err := b.dataSpace()
	if err != nil {
		return err
	}
	metadata, err := b.metadataSpace()
	if err != nil {
		return err
	}
	return b.superblock(devices, details, data, metadata)
}

// count goes through the mappings as they are now, and counts who refers to what.
func (b *builder) count() error {
	b.refs = [2]refTable{newRefTable(), newRefTable()}
	b.refs[MetadataSpace].add(0)
	b.seen, b.mapped = map[uint64]uint64{}, map[uint64]uint64{}
	m := &Metadata{super: b.m.super, blocks: newBlocks(b.f, Options{CacheBytes: defaultCache})}
	w := walker{m: m, ctx: b.ctx, v: b}
	for _, d := range b.roots {
		var err error
		if b.mapped[d.id], err = w.walk(d.root, mappingTree, d.id); err != nil {
			return err
		}
	}
	for i, d := range b.report {
		b.report[i].Mapped = b.mapped[d.ID]
	}
	return b.bad
}

func (b *builder) reference(block uint64, _ place) (bool, uint64) {
	b.refs[MetadataSpace].add(block)
	entries, seen := b.seen[block]
	return !seen, entries
}

func (b *builder) node(n node, _ place) {
	if !n.leaf {
		return
	}
	for i := range n.n {
		b.refs[DataSpace].add(mappingAt(n, i).Data)
	}
}

func (b *builder) lost(d *Damage) { b.bad = d }

func (b *builder) done(block, entries uint64) { b.seen[block] = entries }

// take is a free block, which is referred to once from now on.
func (b *builder) take() (uint64, error) {
	for b.next++; b.next < b.blocks; b.next++ {
		if b.refs[MetadataSpace].get(b.next) == 0 {
			b.refs[MetadataSpace].add(b.next)
			return b.next, nil
		}
	}
	return 0, ErrNoRoom
}

func (b *builder) devices() (uint64, error) {
	return b.tree(deviceTree.valueSize, len(b.roots), func(yield func(uint64, []byte) bool) {
		for _, d := range b.roots {
			if !yield(d.id, binary.LittleEndian.AppendUint64(nil, d.root)) {
				return
			}
		}
	})
}

// detailsTree has the true count of mappings of each device. Of a device whose details are lost, all that was mapped before the
// last snapshot of the pool may be shared.
func (b *builder) detailsTree() (uint64, error) {
	le := binary.LittleEndian
	return b.tree(detailsTree.valueSize, len(b.roots), func(yield func(uint64, []byte) bool) {
		for _, root := range b.roots {
			d, known := b.details[root.id]
			if !known {
				d = Device{TransactionID: b.o.Made[root.id], CreationTime: b.time, SnapshotTime: b.time}
			}
			if b.reshared {
				d.SnapshotTime = max(d.SnapshotTime, 1)
			}
			v := le.AppendUint64(nil, b.mapped[root.id])
			v = le.AppendUint64(v, d.TransactionID)
			v = le.AppendUint32(v, d.CreationTime)
			if !yield(root.id, le.AppendUint32(v, d.SnapshotTime)) {
				return
			}
		}
	})
}

// tree writes a tree of n entries, whose keys rise, and returns its root.
func (b *builder) tree(valueSize, n int, entries iter.Seq2[uint64, []byte]) (uint64, error) {
	level, err := b.level(true, valueSize, n, entries)
	for err == nil && len(level) > 1 {
		below := level
		level, err = b.level(false, childSize, len(below), func(yield func(uint64, []byte) bool) {
			for _, p := range below {
				if !yield(p.key, binary.LittleEndian.AppendUint64(nil, p.value)) {
					return
				}
			}
		})
	}
	if err != nil {
		return 0, err
	}
	return level[0].value, nil
}

// level writes n entries into as few nodes as can be, which have as many each.
func (b *builder) level(leaf bool, valueSize, n int, entries iter.Seq2[uint64, []byte]) ([]pair, error) {
	room := maxEntries(valueSize)
	count := max(1, (n+room-1)/room)
	nodes := make([]pair, 0, count)
	fresh := newNode(leaf, valueSize)
	var first uint64
	flush := func() error {
		block, err := b.take()
		if err != nil {
			return err
		}
		nodes = append(nodes, pair{first, block})
		err = b.write(block, fresh.b, salts[kindNode])
		fresh = newNode(leaf, valueSize)
		return err
	}
	done := 0
	for key, value := range entries {
		if fresh.n == 0 {
			first = key
		}
		fresh.add(key, value)
		if done++; done == n*(len(nodes)+1)/count {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	if n == 0 {
		if err := flush(); err != nil { // the root of an empty tree
			return nil, err
		}
	}
	return nodes, nil
}

// freshNode is a node that is being filled.
type freshNode struct {
	b               []byte
	n, values, size int
}

func newNode(leaf bool, valueSize int) *freshNode {
	le := binary.LittleEndian
	room := maxEntries(valueSize)
	f := &freshNode{b: alignedBytes(BlockSize), values: nodeHeader + 8*room, size: valueSize}
	le.PutUint32(f.b[4:], flagInternal)
	if leaf {
		le.PutUint32(f.b[4:], flagLeaf)
	}
	le.PutUint32(f.b[20:], uint32(room))
	le.PutUint32(f.b[24:], uint32(valueSize))
	return f
}

func (f *freshNode) add(key uint64, value []byte) {
	le := binary.LittleEndian
	le.PutUint64(f.b[nodeHeader+8*f.n:], key)
	copy(f.b[f.values+f.size*f.n:], value)
	f.n++
	le.PutUint32(f.b[16:], uint32(f.n))
}

// write writes a block with its number and checksum.
func (r *mender) write(block uint64, b []byte, salt uint32) error {
	le := binary.LittleEndian
	le.PutUint64(b[8:], block)
	le.PutUint32(b, checksum(b, salt))
	if _, err := r.f.WriteAt(b, int64(block*BlockSize)); err != nil {
		return fmt.Errorf("write block %d: %w", block, err)
	}
	return nil
}

// superblock is written last: it tells what was done.
func (b *builder) superblock(devices, details uint64, data, metadata SpaceMapRoot) error {
	s := alignedBytes(BlockSize)
	if _, err := b.f.ReadAt(s, 0); err != nil {
		return fmt.Errorf("read superblock: %w", err)
	}
	le := binary.LittleEndian
	le.PutUint32(s[4:], le.Uint32(s[4:])&^flagNeedsCheck)
	if b.reshared {
		b.time = max(b.time, 1)
	}
	le.PutUint32(s[44:], b.time)
	le.PutUint64(s[56:], 0) // no metadata snapshot
	putSpaceMapRoot(s[64:], data)
	putSpaceMapRoot(s[192:], metadata)
	le.PutUint64(s[320:], devices)
	le.PutUint64(s[328:], details)
	return b.write(0, s, superblockSalt)
}

func putSpaceMapRoot(b []byte, s SpaceMapRoot) {
	for i, n := range []uint64{s.Blocks, s.Allocated, s.BitmapRoot, s.RefCountRoot} {
		binary.LittleEndian.PutUint64(b[8*i:], n)
	}
}
