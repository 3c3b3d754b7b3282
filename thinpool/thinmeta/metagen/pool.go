// Package metagen makes metadata of thin pools for tests: healthy metadata of
// any number of devices and mappings, with what they share shared as the kernel
// would, and metadata that is damaged in ways that have names.
//
// It has nothing in common with the reader that it tests but the format, and
// panics where a test asks for what cannot be.
package metagen

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
)

// Options say what a pool is like.
type Options struct {
	BlockSize      uint32 // of data, in sectors; 0 for 128
	DataBlocks     uint64 // 0 for 100,000
	MetadataBlocks uint64 // 0 for 4096
	// Seed decides which blocks are taken. With 0 they are taken in order.
	Seed uint64
}

// Pool is a pool in memory. Its devices' mappings are kept in leaves, which
// snapshots share until they are written to.
type Pool struct {
	Options
	Time          uint32
	TransactionID uint64
	NeedsCheck    bool

	devices map[uint64]*device
	held    *generation
	random  *rand.Rand
	next    uint64 // data block
}

// generation is a pool at one moment.
type generation struct {
	time          uint32
	transactionID uint64
	devices       map[uint64]*device
}

// device is never changed once a generation was kept.
type device struct {
	leaves           []*leaf
	mapped           uint64
	transactionID    uint64
	created, snapped uint32
}

// leaf is never changed.
type leaf struct{ entries []entry }

type entry struct{ key, value uint64 }

// Mapping is a run of blocks.
type Mapping struct {
	Begin, Data, Length uint64
	Time                uint32
}

// New is an empty pool.
func New(o Options) *Pool {
	if o.BlockSize == 0 {
		o.BlockSize = 128
	}
	if o.DataBlocks == 0 {
		o.DataBlocks = 100_000
	}
	if o.MetadataBlocks == 0 {
		o.MetadataBlocks = 4096
	}
	p := &Pool{Options: o, devices: map[uint64]*device{}}
	if o.Seed != 0 {
		p.random = rand.New(rand.NewPCG(o.Seed, 1))
	}
	return p
}

// IDs are the devices.
func (p *Pool) IDs() []uint64 { return slices.Sorted(maps.Keys(p.devices)) }

// Thin makes an empty device.
func (p *Pool) Thin(id uint64) {
	p.add(id, &device{transactionID: p.TransactionID, created: p.Time, snapped: p.Time})
}

// Snap makes a snapshot of a device.
func (p *Pool) Snap(id, origin uint64) {
	p.Time++
	o := *p.device(origin)
	o.snapped = p.Time
	p.devices[origin] = &o
	d := o
	d.transactionID, d.created = p.TransactionID, p.Time
	p.add(id, &d)
}

func (p *Pool) add(id uint64, d *device) {
	if p.devices[id] != nil {
		panic(fmt.Sprintf("device %d exists", id))
	}
	p.devices[id] = d
}

func (p *Pool) device(id uint64) *device {
	d := p.devices[id]
	if d == nil {
		panic(fmt.Sprintf("no device %d", id))
	}
	return d
}

// Delete removes a device.
func (p *Pool) Delete(id uint64) {
	p.device(id)
	delete(p.devices, id)
}

// Hold takes a metadata snapshot.
func (p *Pool) Hold() {
	p.held = &generation{p.Time, p.TransactionID, maps.Clone(p.devices)}
}

// Write gives a device new data blocks.
func (p *Pool) Write(id, begin, length uint64) {
	for length > 0 {
		n := length
		if p.random != nil {
			n = min(n, 1+p.random.Uint64N(40))
			p.next += p.random.Uint64N(3)
		}
		p.Map(id, Mapping{begin, p.next, n, p.Time})
		p.next += n
		begin, length = begin+n, length-n
	}
	if p.next > p.DataBlocks {
		panic("no data blocks left")
	}
}

// Map gives a device certain data blocks.
func (p *Pool) Map(id uint64, m Mapping) {
	p.edit(id, m.Begin, m.Length, func(key uint64) entry {
		return entry{key, (m.Data+key-m.Begin)<<24 | uint64(m.Time)}
	})
}

// Unmap takes blocks from a device.
func (p *Pool) Unmap(id, begin, length uint64) { p.edit(id, begin, length, nil) }

// edit replaces what a device has at some blocks.
func (p *Pool) edit(id, begin, length uint64, value func(key uint64) entry) {
	d := *p.device(id)
	from, to := d.around(begin, begin+length)
	var entries []entry
	for _, l := range d.leaves[from:to] {
		entries = append(entries, l.entries...)
	}
	before := len(entries)
	i, _ := slices.BinarySearchFunc(entries, begin, compareKey)
	j, _ := slices.BinarySearchFunc(entries, begin+length, compareKey)
	var put []entry
	if value != nil {
		for key := begin; key < begin+length; key++ {
			put = append(put, value(key))
		}
	}
	entries = slices.Replace(entries, i, j, put...)
	d.mapped += uint64(len(entries) - before)
	for len(entries) < maxMappings/3 && (from > 0 || to < len(d.leaves)) {
		if from > 0 {
			from--
			entries = slices.Concat(d.leaves[from].entries, entries)
			continue
		}
		entries = append(entries, d.leaves[to].entries...)
		to++
	}
	d.leaves = slices.Concat(d.leaves[:from], leavesOf(entries), d.leaves[to:])
	p.devices[id] = &d
}

func compareKey(e entry, key uint64) int {
	switch {
	case e.key < key:
		return -1
	case e.key > key:
		return 1
	}
	return 0
}

// around are the leaves that keys from begin to before end are in or go to.
func (d *device) around(begin, end uint64) (from, to int) {
	for from < len(d.leaves)-1 && d.leaves[from+1].entries[0].key <= begin {
		from++
	}
	to = from
	for to < len(d.leaves) && (to == from || d.leaves[to].entries[0].key < end) {
		to++
	}
	return from, to
}

func leavesOf(entries []entry) []*leaf {
	var leaves []*leaf
	for _, part := range parts(len(entries), maxMappings) {
		leaves = append(leaves, &leaf{slices.Clone(entries[part.begin:part.end])})
	}
	return leaves
}

type part struct{ begin, end int }

// parts cuts n things into equal parts of at most most.
func parts(n, most int) []part {
	count := (n + most - 1) / most
	cut := make([]part, count)
	for i := range cut {
		cut[i] = part{n * i / count, n * (i + 1) / count}
	}
	return cut
}

// Mappings are what a device has, as few runs as can be.
func (p *Pool) Mappings(id uint64) []Mapping {
	var runs []Mapping
	for _, l := range p.device(id).leaves {
		for _, e := range l.entries {
			m := Mapping{e.key, e.value >> 24, 1, uint32(e.value & (1<<24 - 1))}
			if n := len(runs); n > 0 {
				if r := &runs[n-1]; r.Begin+r.Length == m.Begin && r.Data+r.Length == m.Data && r.Time == m.Time {
					r.Length++
					continue
				}
			}
			runs = append(runs, m)
		}
	}
	return runs
}
