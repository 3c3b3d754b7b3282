package service

import (
	"context"
	"time"

	"github.com/dmlayer/dmlayer/layer"
)

// reapAgain is how long what failed is left alone.
const reapAgain = time.Minute

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
		if err == nil {
			var done layer.Reaped
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
		r.wait(ctx)
	}
	return nil
}

// wait keeps what fails from being tried without end.
func (reaper) wait(ctx context.Context) {
	t := time.NewTimer(reapAgain)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}
