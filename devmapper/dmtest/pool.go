package dmtest

import (
	"maps"
	"slices"

	"github.com/dmlayer/dmlayer/devmapper"
)

// Pool is the metadata of a thin pool, which outlives the pool's device. Its
// methods play what happens to a pool in life.
type Pool struct {
	kernel    *Kernel
	dev       *device // the pool's device, the last one that there was
	blockSize uint64

	metadata            // as the pool's target sees it
	committed  metadata // as it is on disk
	failing    bool     // commits fail
	mode       string
	needsCheck bool

	usedMetadata, totalMetadata uint64
	usedData, totalData         uint64
}

type metadata struct {
	transactionID uint64
	time          uint32
	heldRoot      uint64
	thins         map[uint32]uint64 // id -> mapped sectors
}

func (m metadata) clone() metadata {
	m.thins = maps.Clone(m.thins)
	return m
}

// heldRoot is where the metadata snapshot always lies.
const heldRoot = 27

// Pool is the metadata on a device, nil where no pool was ever made on it.
func (k *Kernel) Pool(metadataDev devmapper.DevNum) *Pool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.pools[metadataDev]
}

// Format wipes a metadata device: the next pool on it is a new one.
func (k *Kernel) Format(metadataDev devmapper.DevNum) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.pools, metadataDev)
}

// IDs are the thin ids that the pool has, sorted.
func (p *Pool) IDs() []uint32 {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	return slices.Sorted(maps.Keys(p.thins))
}

// Time is the number of snapshots ever made.
func (p *Pool) Time() uint32 {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	return p.time
}

// FailCommits makes the metadata device fail writes from now on. As in the
// kernel, the message that meets the failure succeeds all the same, what it
// did is lost, and the pool goes read-only with needs_check.
func (p *Pool) FailCommits() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.failing = true
}

// Repair makes commits work again and does what an offline check does:
// needs_check is gone when the pool is next activated or resumed.
func (p *Pool) Repair() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.failing, p.needsCheck, p.mode = false, false, "rw"
}

// Use sets how many blocks of data (of the pool's size) and metadata (of
// 4 KiB) are used. All data makes the pool go out_of_data_space, all metadata
// ro; fewer bring it back, as growing does. Every change of the mode is an
// event.
func (p *Pool) Use(data, meta uint64) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.usedData, p.usedMetadata = data, meta
	p.adjustMode()
}

// SetMetadataSize sets the size of the metadata device in blocks of 4 KiB.
func (p *Pool) SetMetadataSize(blocks uint64) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.totalMetadata = blocks
	p.adjustMode()
}

// Fail puts the pool into the mode in which the metadata cannot be read.
func (p *Pool) Fail() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.setMode("Fail")
}

// Map sets how much of a thin device is mapped.
func (p *Pool) Map(id uint32, sectors devmapper.Sectors) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	if _, ok := p.thins[id]; ok {
		p.thins[id] = uint64(sectors)
	}
}

func (p *Pool) adjustMode() {
	switch {
	case p.mode == "Fail" || p.needsCheck:
	case p.usedMetadata >= p.totalMetadata:
		p.setMode("ro")
	case p.usedData >= p.totalData && p.totalData > 0:
		p.setMode("out_of_data_space")
	default:
		p.setMode("rw")
	}
}

func (p *Pool) setMode(mode string) {
	if p.mode == mode {
		return
	}
	p.mode = mode
	if p.dev != nil {
		p.dev.eventNr++
		p.kernel.event()
	}
}

func (p *Pool) commit() {
	if p.failing {
		p.metadata = p.committed.clone()
		p.needsCheck = true
		p.setMode("ro")
		return
	}
	p.committed = p.metadata.clone()
}

func (p *Pool) reboot() {
	p.metadata, p.dev = p.committed.clone(), nil
	if p.mode == "Fail" {
		p.mode = "rw"
	}
}
