package lvm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
)

// Guard is the range of a lock file that every program of lvm2's which changes something has a lock on, shared, for as long as it runs. It finishes
// its work where the one that started it is killed; whoever looks next, to take back or to go on, would otherwise look before
// it has done anything, and it would do it afterwards.
type Guard struct {
	File  *lockfile.File
	Range lockfile.Range
}

// patience is how long an orphan is waited for. lvm2 changes its metadata in seconds.
var patience = time.Minute

// Guarded returns a client whose changes are guarded, and whose looks wait for those that others' changes have left.
func (c *Client) Guarded(g Guard) *Client { return &Client{program: c.program, guard: &g} }

// enter takes the lock for a program that gets the returned file as its standard input: of all descriptors lvm2 closes that one alone not. The
// kernel drops the lock when the last who has it is gone; leave closes ours.
func (g *Guard) enter(ctx context.Context) (stdin *os.File, leave func(), err error) {
	if g == nil {
		return nil, func() {}, nil
	}
	h, err := g.File.Holder(ctx)
	if err != nil {
		return nil, nil, err
	}
	if err = h.Lock(ctx, g.Range, lockfile.Shared); err == nil {
		stdin, err = h.Inherit()
	}
	if err != nil {
		return nil, nil, errors.Join(err, h.Close())
	}
	return stdin, func() { _ = stdin.Close() }, nil
}

// settled waits until no such program runs.
func (g *Guard) settled(ctx context.Context) error {
	if g == nil {
		return nil
	}
	held, err := g.File.Held(g.Range)
	if err != nil || !held {
		return err
	}
	h, err := g.File.Holder(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = h.Close() }()
	orphan := fmt.Errorf("a program of lvm2's that was started for this pool still runs: %w", errs.ErrBusy)
	orphan = errs.WithHint(orphan, "fuser "+g.File.Path()+" shows it")
	wait, cancel := context.WithTimeoutCause(ctx, patience, orphan)
	defer cancel()
	return h.Lock(wait, g.Range, lockfile.Exclusive)
}
