package pool

import (
	"context"
	"encoding/binary"
	"fmt"
	"os"

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
		err = fmt.Errorf("another process serves it: %s: %w", servedBy(h), errs.ErrBusy)
	}
	if err == nil {
		_, err = h.WriteAt(binary.LittleEndian.AppendUint64(nil, uint64(os.Getpid())), serverOffset)
	}
	if err != nil {
		_ = h.Close()
		return nil, fmt.Errorf("serve pool %q: %w", p.files.name, err)
	}
	return h.Close, nil
}

// serverOffset is where the process that serves the pool leaves its number in the lock file: 8 bytes, little endian, between the cursor
// and the marks. It means something as long as the lock is held.
const serverOffset = 2048

// servedBy names the process that serves the pool, as far as it is known: in another pid namespace it has another number.
func servedBy(h *lockfile.Holder) string {
	var b [8]byte
	if n, err := h.ReadAt(b[:], serverOffset); err != nil && n < len(b) {
		return "it has not said which"
	}
	return fmt.Sprintf("process %d", binary.LittleEndian.Uint64(b[:]))
}

// Served tells what Pool.Served does.
func (s *Session) Served() (bool, error) { return s.holder.Held(at(offsetServe)) }

// Served tells whether a living process serves the pool, this one or another. It may end at any time.
func (p *Pool) Served(ctx context.Context) (bool, error) {
	err := context.Cause(ctx)
	served := false
	if err == nil {
		served, err = p.locks.Held(at(offsetServe)) // without an event for who watches Departures
	}
	if err != nil {
		return false, fmt.Errorf("pool %q: %w", p.files.name, err)
	}
	return served, nil
}
