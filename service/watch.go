package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// eventsWithin is how late the watcher is told of events: every device that comes or goes is one, and they come in bursts, of which one look is enough.
const eventsWithin = 50 * time.Millisecond

// watcher looks after one pool: it makes it larger, tells how it is, and notices when it goes.
type watcher struct {
	c      Config
	store  *layer.Store
	tender *pool.Tender
	hooks  *hooks
	tell   *notifier
	kick   chan struct{} // somebody has changed something

	last     pool.Tended
	looked   bool
	failing  string // what was last logged to have failed
	data     int    // thresholds that have been told
	metadata int
}

func newWatcher(c Config, store *layer.Store, tell *notifier) *watcher {
	return &watcher{
		c: c, store: store, tender: store.Pool().Tender(), hooks: newHooks(c.Logger), tell: tell,
		kick: make(chan struct{}, 1),
	}
}

// nudge has the watcher look, soon.
func (w *watcher) nudge() {
	select {
	case w.kick <- struct{}{}:
	default:
	}
}

// run is the task that looks: when device-mapper raises an event, when a device of this machine has got another size, when others have
// changed something, and now and then.
func (w *watcher) run(ctx context.Context) error {
	events, err := w.store.Devmapper().EventsWithin(ctx, eventsWithin)
	if err != nil {
		return err
	}
	sizes, err := deviceEvents(ctx, resizedDevice, "change")
	if err != nil { // in a container that may not listen: what became larger is seen with the next tick
		w.c.Logger.Info("devices that become larger are noticed once a minute only", "error", err)
	}
	ticks, stop := w.c.ticks()
	defer stop()
	defer w.rest(ctx)
	for all := true; ; {
		if err := w.look(ctx, all); err != nil {
			return err
		}
		all = false
		select {
		case <-ctx.Done():
			return nil
		case _, ok := <-events:
			if !ok && ctx.Err() == nil {
				return errors.New("device-mapper tells no events any more")
			}
		case _, ok := <-sizes:
			if all = ok; !ok {
				sizes = nil
			}
		case <-w.kick:
		case <-w.c.Again:
			all = true
		case <-ticks:
			all = true
			if err := w.stillOurs(ctx); err != nil {
				return err
			}
			w.backUp(ctx)
		}
	}
}

// rest has writers fail again that find the pool full, as nobody makes it larger from now on.
func (w *watcher) rest(ctx context.Context) {
	ctx, cancel := pool.UndoContext(ctx)
	defer cancel()
	if err := w.tender.Rest(ctx); err != nil && errs.Class(err) != errs.ErrNotFound {
		w.c.Logger.Warn("writers may go on waiting for room, for a minute", "error", err)
	}
}

// stillOurs finds out whether others still see that the pool is served: not where the run directory was cleaned. Where it cannot be found out, as without
// descriptors left, it is looked again later.
func (w *watcher) stillOurs(ctx context.Context) error {
	served, err := w.store.Pool().Served(ctx)
	switch {
	case err != nil && ctx.Err() == nil:
		w.c.Logger.Warn("cannot see whether others see that the pool is served", "error", err)
	case err == nil && !served:
		w.c.Logger.Warn("the run directory was cleaned", "run", w.c.Dirs.Run)
		return errGone
	}
	return nil
}

// backUp copies the records, if they have changed. A pool that does not run is left alone: who stopped it has copied them.
func (w *watcher) backUp(ctx context.Context) {
	if !w.last.Running {
		return
	}
	if err := w.store.BackupIfDue(ctx); err != nil && ctx.Err() == nil {
		w.c.Logger.Warn("the records were not backed up", "error", err)
	}
}

// look looks at the pool once, and tells what has changed. Its error is the end of the pool's life, or of ctx.
func (w *watcher) look(ctx context.Context, all bool) error {
	t, err := w.tender.Look(ctx, all)
	switch {
	case errors.Is(err, pool.ErrChanged):
		return errGone
	case err != nil && ctx.Err() != nil:
		return nil
	case err != nil:
		if text := err.Error(); text != w.failing {
			w.failing = text
			w.c.Logger.Error("cannot look after the pool", "error", err, "hint", errs.Hint(err))
		}
		return nil
	}
	w.failing = ""
	w.report(t)
	w.last, w.looked = t, true
	return nil
}

func (w *watcher) report(t pool.Tended) {
	log, before := w.c.Logger, w.last
	if !t.Running {
		if before.Running || !w.looked {
			log.Info("the pool does not run: waiting for somebody to start it", "pool", w.c.Pool)
			w.tell.send("STATUS=pool " + w.c.Pool + " does not run")
		}
		w.data, w.metadata = 0, 0
		return
	}
	if w.looked && !before.Running {
		log.Info("the pool runs again", "pool", w.c.Pool)
	}
	if before.Running && before.State != t.State {
		log.Warn("the pool has changed its state", "pool", w.c.Pool, "from", before.State, "to", t.State)
	}
	w.tell.send(fmt.Sprintf("STATUS=pool %s is %s: data %d%%, metadata %d%%", w.c.Pool, t.State, t.DataPercent(), t.MetadataPercent()))
	w.reportGrowth(t)
	w.reportLevel(t, eventData, "data", t.DataPercent(), &w.data)
	w.reportLevel(t, eventMetadata, "metadata", t.MetadataPercent(), &w.metadata)
}

func (w *watcher) reportGrowth(t pool.Tended) {
	data, meta := t.After.Data-t.Before.Data, t.After.Metadata-t.Before.Metadata
	if data > 0 || meta > 0 {
		w.c.Logger.Info("the pool has grown", "pool", w.c.Pool, "data", t.After.Data, "metadata", t.After.Metadata)
		w.hook(t, eventGrown, "", "DMLAYER_DATA_ADDED="+strconv.FormatInt(data, 10), "DMLAYER_METADATA_ADDED="+strconv.FormatInt(meta, 10))
	}
	if t.Stuck != nil && w.last.Stuck == nil {
		w.c.Logger.Error("the pool does not grow", "pool", w.c.Pool, "error", t.Stuck, "hint", errs.Hint(t.Stuck))
		w.hook(t, eventStuck, "", "DMLAYER_ERROR="+t.Stuck.Error())
	}
}

// reportLevel tells that a threshold was passed on the way up, once: the highest of several.
func (w *watcher) reportLevel(t pool.Tended, event, what string, percent int, told *int) {
	if now := level(percent); now > *told {
		w.c.Logger.Warn(what+" runs low", "pool", w.c.Pool, "percent", percent)
		w.hook(t, event, strconv.Itoa(now), "DMLAYER_THRESHOLD="+strconv.Itoa(now))
		*told = now
	} else {
		*told = now
	}
}

func (w *watcher) hook(t pool.Tended, event, detail string, more ...string) {
	w.hooks.call(hookCall{t.Space.Hook, event, detail, w.c.hookEnv(w.store.Pool().UUID(), event, t, more...)})
}

// ticks are the moments at which everything is looked at.
func (c Config) ticks() (<-chan time.Time, func()) {
	if c.Ticks != nil {
		return c.Ticks, func() {}
	}
	t := time.NewTicker(time.Minute)
	return t.C, t.Stop
}
