package service

import (
	"context"
	"time"

	"github.com/dmlayer/dmlayer/layer"
)

// reapAgain is how long what failed is left alone, and reapSoon what somebody else is at work on.
const (
	reapAgain = time.Minute
	reapSoon  = 20 * time.Millisecond
)

// reaper gives back what removed nodes had, as soon as there is any: those who remove them leave it to whoever serves the pool.
type reaper struct {
	c     Config
	store *layer.Store
}

// run is the task.
func (r reaper) run(ctx context.Context) error {
	failing := ""
	for ctx.Err() == nil {
		err := r.store.WaitTombstones(ctx)
		var done layer.Reaped
		if err == nil {
			if done, err = r.store.Reap(ctx, nil); done.Deleted > 0 {
				r.c.Logger.Info("deleted what removed nodes had", "thin devices", done.Deleted)
			}
		}
		if err == nil && done.Deleted == 0 {
			wait(ctx, reapSoon)
		}
		if err == nil || ctx.Err() != nil {
			failing = ""
			continue
		}
		if text := err.Error(); text != failing {
			failing = text
			r.c.Logger.Warn("removed nodes are not deleted, and tried again later", "error", err)
		}
		wait(ctx, reapAgain)
	}
	return nil
}

// wait keeps what cannot be done yet from being tried without end.
func wait(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
