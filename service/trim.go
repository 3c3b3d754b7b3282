package service

import (
	"context"
	"time"

	"github.com/dmlayer/dmlayer/layer"
)

const (
	// trimEvery is how often the service looks whether free blocks are worth to be given back.
	trimEvery = 10 * time.Minute
	// trimLeast is what the host must keep for free blocks, in bytes, and trimPart is the part of what is in use, in percent, that it must be.
	trimLeast = 64 << 20
	trimPart  = 20
)

// trimmer gives free blocks back to the host, where a pool's data file keeps many of them: what removed nodes had, a little each.
type trimmer struct {
	c     Config
	store *layer.Store
	least int64 // below it nothing is done

	left    int64 // what the host kept after the last time: it may be that it cannot be had
	failing string
}

func newTrimmer(c Config, store *layer.Store) *trimmer {
	least := int64(trimLeast)
	if c.TrimLeast > 0 {
		least = c.TrimLeast
	}
	return &trimmer{c: c, store: store, least: least}
}

// run is the task.
func (t *trimmer) run(ctx context.Context) error {
	ticks := t.c.TrimTicks
	if ticks == nil {
		ticker := time.NewTicker(trimEvery)
		defer ticker.Stop()
		ticks = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticks:
			t.look(ctx)
		}
	}
}

// look gives back what is worth it. A sweep takes each free block once at most, and ends when little is left.
func (t *trimmer) look(ctx context.Context) {
	stale, used, err := t.store.Stale(ctx)
	if err == nil && !t.worth(stale, used) {
		t.failing = ""
		return
	}
	var r layer.FreeTrim
	if err == nil {
		r, err = t.store.TrimFree(ctx, layer.TrimFreeOptions{Enough: t.enough(used) / 4})
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		if text := err.Error(); text != t.failing {
			t.failing = text
			t.c.Logger.Warn("free blocks are not given back, and tried again later", "error", err)
		}
	default:
		t.failing = ""
		if r.Before != nil && r.After != nil {
			t.left = *r.After
			t.c.Logger.Info("gave free blocks back to the host", "pool", t.c.Pool, "kept before", *r.Before, "kept now", *r.After, "swept", r.Swept)
		}
	}
}

// worth tells whether so many bytes are worth a sweep: much, and much more than the last one has left.
func (t *trimmer) worth(stale, used int64) bool {
	t.left = min(t.left, stale)
	return stale-t.left > t.enough(used)
}

func (t *trimmer) enough(used int64) int64 { return max(t.least, used/100*trimPart) }
