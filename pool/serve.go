package pool

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
)

// Serve declares that this process serves the pool: until stop is called, or the process dies, it finishes what others leave
// to it, and they may rely on that. A pool has one such process at most: ErrBusy where it has one.
func (p *Pool) Serve(ctx context.Context) (stop func() error, err error) {
	h, err := p.locks.Holder(ctx)
	if err != nil {
		return nil, fmt.Errorf("serve pool %q: %w", p.files.name, err)
	}
	ok, err := h.TryLock(at(offsetServe), lockfile.Exclusive)
	if err == nil && !ok {
		err = fmt.Errorf("another process serves it: %w", errs.ErrBusy)
	}
	if err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("serve pool %q: %w", p.files.name, err)
	}
	return h.Close, nil
}

// Served tells whether a living process serves the pool, this one or another. It may end at any time.
func (p *Pool) Served(ctx context.Context) (bool, error) {
	h, err := p.locks.Holder(ctx) // of the file that is at the path now
	if err != nil {
		return false, fmt.Errorf("pool %q: %w", p.files.name, err)
	}
	defer h.Close()
	return h.Held(at(offsetServe))
}
