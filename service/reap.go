package service

import (
	"context"
	"time"

	"github.com/dmlayer/dmlayer/internal/pause"
	"github.com/dmlayer/dmlayer/layer"
)

// reapAgain is how long what failed is left alone.
const reapAgain = time.Minute

// reaper gives back what removed nodes had, as soon as there is any and nothing changes for a moment: those who remove them leave it to whoever serves the
// pool. Who removes something may not have got his answer yet, and may remove more, which is looked at together.
type reaper struct {
	c     Config
	store *layer.Store
}

// run is the task.
func (r reaper) run(ctx context.Context) error {
	failing := ""
	var done layer.Reaped
	for ctx.Err() == nil {
		err := r.await(ctx, done.Failed > 0)
		if done = (layer.Reaped{}); err == nil {
			if done, err = r.store.Reap(ctx, nil); done.Deleted > 0 {
				r.c.Logger.Info("deleted what removed nodes had", "thin devices", done.Deleted)
			}
		}
		if err == nil || ctx.Err() != nil {
			failing = ""
			continue
		}
		if text := err.Error(); text != failing {
			failing = text
			r.c.Logger.Warn("removed nodes are not deleted, and tried again later", "error", err)
		}
		if done.Failed == 0 {
			_ = pause.For(ctx, reapAgain) // what fails is not tried without end
		}
	}
	return nil
}

// await waits until there is something to reap, or where some of that has failed it is time to try it again.
func (r reaper) await(ctx context.Context, failed bool) error {
	if !failed {
		return r.store.WaitTombstones(ctx)
	}
	until, cancel := context.WithTimeout(ctx, reapAgain)
	defer cancel()
	err := r.store.WaitTombstones(until)
	if until.Err() != nil {
		return ctx.Err()
	}
	return err
}
