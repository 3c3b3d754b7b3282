package layer

import (
	"context"
	"log/slog"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
)

// OpenRecords opens the pool's nodes to look at what is recorded of them and which of them are active, where Open fails because
// the pool is damaged: nothing is started, compared or recovered. What needs more than the records fails as Open
// did. Errors: ErrNotFound, ErrDamaged, ErrUnsupported.
func OpenRecords(ctx context.Context, c Config) (*Store, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	p, err := pool.Open(ctx, c.Dirs, c.Pool, c.Logger)
	if err != nil {
		return nil, err
	}
	return &Store{pool: p, log: c.Logger, gone: map[metadata.ThinID]bool{}}, nil
}
