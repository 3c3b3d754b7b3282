package thinmeta

import "sync"

// memoryBuffers bounds what a Memory keeps, to 1 MiB.
const memoryBuffers = 16

// Memory is what one Metadata after another reads into, for those who open
// metadata again and again for a look at a little of it: fresh memory costs
// more than such a look. The zero value is ready.
//
// Open takes the memory away from the Metadata that was opened with it before,
// which must not be used any more.
type Memory struct {
	mu   sync.Mutex
	bufs [][]byte
	used int // of bufs
}

func (m *Memory) reset() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used = 0
}

// buffer is room for a cluster. What is beyond the bound belongs to whoever
// asked.
func (m *Memory) buffer() []byte {
	if m == nil {
		return alignedBytes(clusterBytes)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.used == memoryBuffers {
		return alignedBytes(clusterBytes)
	}
	if m.used == len(m.bufs) {
		m.bufs = append(m.bufs, alignedBytes(clusterBytes))
	}
	m.used++
	return m.bufs[m.used-1]
}
