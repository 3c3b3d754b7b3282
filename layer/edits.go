package layer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// errEdited says that an operation would have to wait for the end of an Edit of this process.
var errEdited = errs.WithHint(fmt.Errorf("it is being written to, as by a layer that is unpacked into it: %w", errs.ErrBusy), "try again when that has ended")

// edits are the nodes that Edits of this process write to. An Edit has the node's lock for as long as it takes, minutes with a large layer, and whoever has activated the
// node would wait as long with each request. The zero value has none.
type edits struct {
	mu      sync.Mutex
	running map[string]context.Context
	waiting map[string]map[*waiter]bool
}

type waiter struct{ cancel context.CancelCauseFunc }

// begin notes that a node is edited, whose lock is held, and sends those away who wait for it.
func (e *edits) begin(ctx context.Context, name string) (end func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.running == nil {
		e.running = map[string]context.Context{}
	}
	e.running[name] = ctx
	for w := range e.waiting[name] {
		w.cancel(errEdited)
	}
	return func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.running, name)
	}
}

// wait returns a context that ends with errEdited while the node is edited, or as soon as it is. An Edit whose own context has ended is about to end, and waited for.
func (e *edits) wait(ctx context.Context, name string) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	w := &waiter{cancel}
	e.mu.Lock()
	defer e.mu.Unlock()
	if by, ok := e.running[name]; ok && by.Err() == nil {
		cancel(errEdited)
	}
	if e.waiting == nil {
		e.waiting = map[string]map[*waiter]bool{}
	}
	if e.waiting[name] == nil {
		e.waiting[name] = map[*waiter]bool{}
	}
	e.waiting[name][w] = true
	return ctx, func() {
		cancel(nil)
		e.mu.Lock()
		defer e.mu.Unlock()
		if delete(e.waiting[name], w); len(e.waiting[name]) == 0 {
			delete(e.waiting, name)
		}
	}
}

// lockUnlessEdited is lockNode that waits for no Edit of this process: errEdited, which is ErrBusy.
func (o *op) lockUnlessEdited(ctx context.Context, name string) (metadata.Node, error) {
	waiting, stop := o.s.edits.wait(ctx, name)
	defer stop()
	n, err := o.lockNode(waiting, name)
	if err != nil && ctx.Err() == nil && errors.Is(context.Cause(waiting), errEdited) {
		err = fmt.Errorf("%q: %w", name, errEdited)
	}
	return n, err
}

// activated is Activate for a node that is being edited: who has activated it the same way is told so again, for which nothing is to be done. Others get busy.
func (s *Store) activated(ctx context.Context, name string, co ClaimOptions, busy error) (Device, error) {
	o, err := s.reader(ctx)
	if err != nil {
		return Device{}, err
	}
	defer o.Exit()
	n, err := o.read(ctx, name)
	if err != nil {
		return Device{}, err
	}
	held, err := o.claims(n.ID)
	if err != nil {
		return Device{}, err
	}
	if co.ReadOnly || co.Check != nil || !slices.Contains(held, co.Claim) {
		return Device{}, busy
	}
	return o.described(n, false), nil
}
