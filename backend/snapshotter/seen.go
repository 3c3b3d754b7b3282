package snapshotter

import (
	"errors"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/layer"
)

// errStale says that what was remembered of a snapshot is not so any more: it is to be looked up.
var errStale = errors.New("remembered wrongly")

// maxSeen bounds what a long-lived process remembers.
const maxSeen = 4096

// seen remembers what keys stood for when this process saw them last. Another process may have changed that since: who goes by it checks it in the
// transaction that he makes anyway, and looks it up where it was wrong. So most requests need one transaction instead of two.
type seen struct {
	mu   sync.Mutex
	keys map[string]record
}

func (s *seen) get(key string) (record, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.keys[key]
	return r, ok
}

func (s *seen) put(r record) {
	r.Labels = nil // not relied on, and sometimes large
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.keys == nil || len(s.keys) >= maxSeen {
		s.keys = map[string]record{}
	}
	s.keys[r.key] = r
}

func (s *seen) drop(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.keys, key)
}

// stale is errStale where a transaction finds a snapshot to be another one than was remembered.
func (r record) stale(now record) error {
	if r.node != now.node || r.Kind != now.Kind || r.Staged != now.Staged || r.Parent != now.Parent {
		return errStale
	}
	return nil
}

// wrong tells whether an error may come of something that was remembered.
func wrong(err error) bool {
	return errors.Is(err, errStale) || errors.Is(err, layer.ErrNotFound) || errdefs.IsNotFound(err)
}

// parentSeen returns the node of the parent of a new snapshot, where that is remembered and the key is not: else the error is found sooner by looking.
func (s *Snapshotter) parentSeen(r record) (node string, ok bool) {
	if _, taken := s.seen.get(r.key); taken {
		return "", false
	}
	if r.Parent == "" {
		return "", true
	}
	p, ok := s.seen.get(r.Parent)
	return p.node, ok && p.kind() == snapshots.KindCommitted
}

// add records a snapshot whose parent must be there still.
func add(tx documents, r record) error {
	if err := free(tx, r.key); err != nil {
		return err
	}
	if _, err := parentOf(tx, r); err != nil {
		return err
	}
	return put(tx, r)
}

// addOn is add for a snapshot whose parent must be that node.
func addOn(tx documents, r record, node string) error {
	if p, err := parentOf(tx, r); err == nil && r.Parent != "" && p.node != node {
		return errStale
	}
	return add(tx, r)
}
