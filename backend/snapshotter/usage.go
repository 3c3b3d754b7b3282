package snapshotter

import (
	"context"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/dmlayer/dmlayer/backend/internal/errclass"
	"github.com/dmlayer/dmlayer/layer"
)

// usage is what one reading of the pool's metadata told of all snapshots.
type usage struct {
	own  map[string]int64 // bytes by name of node
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
	r, err := s.lookup(ctx, key)
	if err != nil {
		return snapshots.Usage{}, errclass.Translated(err)
	}
	if r.kind() == snapshots.KindView && r.Parent != "" || r.Staged {
		return snapshots.Usage{}, nil // it is the layer's
	}
	size, err := s.ownOf(ctx, r.node)
	return snapshots.Usage{Size: size}, errclass.Translated(err)
}

func (s *Snapshotter) ownOf(ctx context.Context, node string) (int64, error) {
	s.mu.Lock()
	defer s.mu.Unlock() // who comes meanwhile is served by the same reading
	now, err := s.store.Moment(ctx)
	if err != nil {
		return 0, err
	}
	size, ok := s.usage.own[node]
	if ok && s.usage.serves(now) {
		return size, nil
	}
	if err := s.measure(ctx); err != nil {
		return 0, err
	}
	return s.usage.own[node], nil
}

func (u usage) serves(now layer.Moment) bool {
	return u.at == now || u.took > longReading && time.Since(u.read) < restFactor*u.took
}

func (s *Snapshotter) measure(ctx context.Context) error {
	var nodes []string
	err := s.store.ViewDocuments(ctx, func(tx *layer.DocTx) error {
		docs, err := tx.List(kindSnapshot)
		for _, d := range docs {
			nodes = append(nodes, d.Layers...)
		}
		return err
	})
	if err != nil {
		return err
	}
	begin := time.Now()
	own, at, err := s.store.Own(ctx, nodes)
	if err != nil {
		return err
	}
	s.usage = usage{own: own, at: at, read: time.Now(), took: time.Since(begin)}
	return nil
}
