package layer

import (
	"sync"

	"github.com/dmlayer/dmlayer/metadata"
)

// maxHints bounds what a long-lived process remembers.
const maxHints = 4096

// hints remembers what names meant at one version of the store. While the store is at that version
// they are true; at another they are still good guesses, to be checked under the lock.
type hints struct {
	mu      sync.Mutex
	version uint64
	nodes   map[string]metadata.Node
}

// get returns a guess.
func (h *hints) get(name string) (metadata.Node, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, ok := h.nodes[name]
	return n, ok
}

// at returns what a name means at a version, if that is known.
func (h *hints) at(name string, version uint64) (metadata.Node, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, ok := h.nodes[name]
	return n, ok && version != 0 && version == h.version
}

// saw takes note of a read transaction: hints of an older version are of no use any more.
func (h *hints) saw(version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if version > h.version {
		h.reset(version)
	}
}

// wrote takes note of a transaction of our own. If nobody else's lies before it, what was known stays
// true but for the nodes that the transaction changed, whose locks we hold and which are put or dropped
// before those are given back.
func (h *hints) wrote(version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if version == h.version+1 {
		h.version = version
	} else if version > h.version {
		h.reset(version)
	}
}

func (h *hints) reset(version uint64) {
	h.version = version
	h.nodes = map[string]metadata.Node{}
}

// put remembers a node as a transaction at a version has it.
func (h *hints) put(n metadata.Node, version uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case version != h.version:
		delete(h.nodes, n.Name)
	default:
		if len(h.nodes) >= maxHints {
			clear(h.nodes)
		}
		h.nodes[n.Name] = n
	}
}

// drop forgets a name.
func (h *hints) drop(name string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.nodes, name)
}
