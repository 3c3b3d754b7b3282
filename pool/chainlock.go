package pool

import (
	"context"
	"fmt"
	"hash/fnv"

	"github.com/dmlayer/dmlayer/internal/lockfile"
)

// LockChain keeps others from making the layer of that name at the same time. It comes before every
// other lock, so it is a holder of its own.
func (p *Pool) LockChain(ctx context.Context, name string) (unlock func(), err error) {
	h, err := p.locks.Holder(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock chain %q: %w", name, err)
	}
	if err := h.Lock(ctx, chainRange(name), lockfile.Exclusive); err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("lock chain %q: %w", name, err)
	}
	return func() { _ = h.Close() }, nil
}

// TryLockChain is LockChain for who holds other locks: it does not wait. ok says whether the lock was had.
func (p *Pool) TryLockChain(ctx context.Context, name string) (unlock func(), ok bool, err error) {
	h, err := p.locks.Holder(ctx)
	if err == nil {
		ok, err = h.TryLock(chainRange(name), lockfile.Exclusive)
		if !ok || err != nil {
			_ = h.Close()
		}
	}
	if err != nil {
		return nil, false, fmt.Errorf("lock chain %q: %w", name, err)
	}
	return func() { _ = h.Close() }, ok, nil
}

func chainRange(name string) lockfile.Range {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte(name))
	return at(offsetChain + int64(hash.Sum64()%chainSpan))
}
