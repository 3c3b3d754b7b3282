package containerd

import (
	"context"
	"errors"

	"github.com/dmlayer/dmlayer/backend/differ"
	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/internal/socket"
	"github.com/dmlayer/dmlayer/layer"
)

// Endpoint is all that dmlayer serve does for containerd.
type Endpoint struct {
	server  *Server
	content *Content
}

// Open makes the socket of an endpoint on a store, which must outlive it. Differences are written to the content store of the containerd at address, which is
// asked for only then. The errors are those of socket.Listen.
func Open(ctx context.Context, store *layer.Store, path, address string) (*Endpoint, error) {
	content, err := DialContent(address)
	if err != nil {
		return nil, err
	}
	l, err := socket.Listen(ctx, path)
	if err != nil {
		return nil, errors.Join(err, content.Close())
	}
	return &Endpoint{New(l, snapshotter.New(store), differ.New(store, content, content.Leases)), content}, nil
}

// Damaged returns what is wrong with the records of containerd's snapshots that cannot be read, by key.
func Damaged(ctx context.Context, store *layer.Store) (map[string]error, error) {
	return snapshotter.Damaged(ctx, store)
}

// Serve answers until ctx ends; see Server.Serve.
func (e *Endpoint) Serve(ctx context.Context) error {
	return errors.Join(e.server.Serve(ctx), e.content.Close())
}
