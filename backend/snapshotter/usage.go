package snapshotter

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/backend/internal/errclass"
	"github.com/dmlayer/dmlayer/layer"
)

// usage is what one reading of the pool's metadata told of all snapshots.
type usage struct {
	keys map[string]string      // of snapshots, to what they count by; "" is what counts as nothing
	own  map[string]layer.Owned // by name of node
	at   layer.Moment
	read time.Time
	took time.Duration
}

// Readings that take long are used again, for ten times as long as they took, while writers change what they tell.
const (
	longReading = 20 * time.Millisecond
	restFactor  = 10
)

// Usage tells what a snapshot has in the pool that its parent has not, overwritten blocks included. One reading of the metadata serves
// all snapshots until something has been written.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	err := checkKey("key", key)
	var size int64
	if err == nil {
		size, err = s.sizeOf(ctx, key)
	}
	return snapshots.Usage{Size: size}, errclass.Translated(err)
}

func (s *Snapshotter) sizeOf(ctx context.Context, key string) (int64, error) {
	select { // who comes meanwhile is served by the same reading
	case s.measuring <- struct{}{}:
		defer func() { <-s.measuring }()
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	now, err := s.store.Moment(ctx)
	if err != nil {
		return 0, err
	}
	if s.usage.at == now { // nothing has changed, keys included
		if node, ok := s.usage.keys[key]; ok {
			return s.usage.of(key, node)
		}
	}
	r, err := s.lookup(ctx, key)
	if err != nil || counted(r) == "" {
		return 0, err
	}
	if _, ok := s.usage.own[r.node]; ok && s.usage.rests() {
		return s.usage.of(key, r.node)
	}
	if err := s.measure(ctx, now); err != nil {
		return 0, err
	}
	return s.usage.of(key, r.node)
}

// of returns the bytes of a snapshot that counts by a node.
func (u usage) of(key, node string) (int64, error) {
	if node == "" {
		return 0, nil
	}
	own, ok := u.own[node]
	if !ok {
		return 0, fmt.Errorf("snapshot %q was removed meanwhile: %w", key, errdefs.ErrNotFound)
	}
	return own.Bytes, own.Err
}

// counted returns the node by which a snapshot counts, "" for one that is the layer's.
func counted(r record) string {
	if r.shared() {
		return ""
	}
	return r.node
}

// rests tells whether it is too early to read again.
func (u usage) rests() bool { return u.took > longReading && time.Since(u.read) < restFactor*u.took }

// measure reads the metadata. The keys are kept where they have not changed since before.
func (s *Snapshotter) measure(ctx context.Context, before layer.Moment) error {
	keys := map[string]string{}
	err := s.store.ViewDocuments(ctx, func(tx *layer.DocTx) error {
		docs, err := tx.List(kindSnapshot)
		for _, d := range docs {
			r, derr := decode(d)
			if derr != nil {
				continue // who asks for it is told
			}
			keys[d.Key] = counted(r)
		}
		return err
	})
	if err != nil {
		return err
	}
	nodes := slices.DeleteFunc(slices.Sorted(maps.Values(keys)), func(node string) bool { return node == "" })
	begin := time.Now()
	own, at, err := s.store.Own(ctx, slices.Compact(nodes))
	if err != nil {
		return err
	}
	if at.Records != before.Records {
		keys = nil
	}
	s.usage = usage{keys: keys, own: own, at: at, read: time.Now(), took: time.Since(begin)}
	return nil
}
