// Package service is a process that lives with a pool: it grows it, finishes what dead processes left, copies the records
// now and then, and carries the sockets through which others use the pool. It is what `dmlayer serve` runs.
//
// Everything it does can also be done by commands while it does not run, and in any mixture with them.
package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// Endpoint serves clients of a pool.
type Endpoint interface {
	// Serve returns when ctx has ended and what was running has been finished, or when it cannot go on.
	Serve(ctx context.Context) error
}

// Opener makes an endpoint that works on a store. It has the socket when it returns.
type Opener func(ctx context.Context, s *layer.Store) (Endpoint, error)

// Config says what Run serves.
type Config struct {
	Dirs      pool.Dirs
	Pool      string
	Logger    *slog.Logger // nil is silent
	Endpoints []Opener
	// Again has everything looked at again: settings, room, devices. May be nil.
	Again <-chan struct{}
	// Ticks are when everything is looked at although nothing has happened; nil is once a minute.
	Ticks <-chan time.Time
	// TrimTicks are when it is looked whether the host keeps so much for free blocks that they are given back; nil is every ten minutes.
	TrimTicks <-chan time.Time
	// TrimLeast is how many bytes that must be at least, 0 for 64 MiB; a fifth of what is in use in any case.
	TrimLeast int64
}

// errGone says that the pool that was served is not there any more.
var errGone = errors.New("the pool is gone")

// takenError says that another process serves the pool.
type takenError struct{ error }

func (e takenError) Unwrap() error { return e.error }

// Run serves a pool until ctx ends, which is no error. Where there is no such pool at the beginning it is ErrNotFound, and
// ErrBusy where another process serves it. A disk of it that is not there yet, as after a boot, is waited for. A pool that goes away later, or changes hands, is waited for.
func Run(ctx context.Context, c Config) error {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	tell := newNotifier()
	defer tell.live(ctx)()
	store, err := c.openWhole(ctx, tell)
	if store == nil {
		return err
	}
	for first := true; ; first = false {
		err := c.life(ctx, store, tell)
		if cerr := store.Close(); err == nil {
			err = cerr
		}
		var taken takenError
		if !errors.Is(err, errGone) && (first || !errors.As(err, &taken)) || ctx.Err() != nil {
			return err
		}
		c.Logger.Warn("the pool is gone: waiting for one of its name", "pool", c.Pool)
		tell.send("STATUS=pool " + c.Pool + " is gone")
		if store, err = c.await(ctx, tell); err != nil {
			return err
		}
		if store == nil {
			return nil
		}
		c.Logger.Info("there is a pool again", "pool", c.Pool)
	}
}

func (c Config) open(ctx context.Context) (*layer.Store, error) {
	return layer.Open(ctx, layer.Config{Dirs: c.Dirs, Pool: c.Pool, Logger: c.Logger})
}

// openWhole is open that waits for disks of the pool that are not there yet: after a boot they are found in any order. nil without an error
// is that ctx has ended meanwhile.
func (c Config) openWhole(ctx context.Context, tell *notifier) (*layer.Store, error) {
	store, err := c.open(ctx)
	if !errors.Is(err, pool.ErrAbsent) {
		return store, err
	}
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	devices, lerr := deviceEvents(watching, newDevice, "add", "change")
	if lerr != nil {
		c.Logger.Info("a disk that comes is noticed within a minute only", "error", lerr)
	}
	ticks, stop := c.ticks()
	defer stop()
	for said := ""; ; {
		if store, err = c.open(ctx); ctx.Err() != nil && store == nil {
			return nil, nil
		}
		if !errors.Is(err, pool.ErrAbsent) {
			return store, err
		}
		if text := err.Error(); text != said {
			said = text
			c.Logger.Warn("waiting for a disk of the pool", "pool", c.Pool, "error", err, "hint", errs.Hint(err))
			tell.send("STATUS=waiting for a disk: " + text)
		}
		tell.extend()
		select {
		case <-ctx.Done():
			return nil, nil
		case _, ok := <-devices:
			if !ok {
				devices = nil
			}
		case <-c.Again:
		case <-ticks:
		}
	}
}

// life serves the pool that the store is of, until ctx ends or there is no such pool any more.
func (c Config) life(ctx context.Context, store *layer.Store, tell *notifier) (err error) {
	p := store.Pool()
	stop, err := p.Serve(ctx)
	if errs.Class(err) == errs.ErrBusy {
		return takenError{err}
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	servers := make([]Endpoint, 0, len(c.Endpoints))
	for _, open := range c.Endpoints {
		e, err := open(ctx, store)
		if err != nil {
			return err
		}
		servers = append(servers, e)
	}
	tell.send("READY=1\nSTATUS=pool " + c.Pool)
	c.Logger.Info("serving", "pool", c.Pool)
	return together(ctx, c.tasks(store, servers, tell)...)
}

// task is one thing that goes on while a pool is served. Its first error ends all of them; so does the end of ctx, which is
// no error.
type task func(ctx context.Context) error

func (c Config) tasks(store *layer.Store, servers []Endpoint, tell *notifier) []task {
	tasks := make([]task, 0, len(servers)+6)
	for _, e := range servers {
		tasks = append(tasks, e.Serve)
	}
	w := newWatcher(c, store, tell)
	return append(tasks, w.run, w.hooks.run, newSettler(c, store, store.Pool().Departures, w.nudge).run, store.WatchMounts, reaper{c, store}.run, newTrimmer(c, store).run)
}

// together runs tasks until one of them ends, ends the others and waits for them.
func together(ctx context.Context, tasks ...task) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	failed := make([]error, len(tasks))
	var all sync.WaitGroup
	for i, t := range tasks {
		all.Go(func() {
			err := t(ctx)
			if ctx.Err() == nil { // the one that ended first says why
				failed[i] = err
			}
			cancel(err)
		})
	}
	all.Wait()
	return errors.Join(failed...)
}

// await returns the store of the pool that takes the place of one that went away, or nil when ctx has ended.
func (c Config) await(ctx context.Context, tell *notifier) (*layer.Store, error) {
	dm, err := devmapper.Open()
	if err != nil {
		return nil, err
	}
	defer dm.Close()
	// Closed before dm: they end with their context.
	watching, cancel := context.WithCancel(ctx)
	defer cancel()
	events, err := dm.Events(watching)
	if err != nil {
		return nil, err
	}
	ticks, stop := c.ticks()
	defer stop()
	said, rest := "", soon
	for {
		store, err := c.openFree(ctx)
		if err == nil || ctx.Err() != nil {
			return store, nil
		}
		if !passes(err) {
			return nil, fmt.Errorf("the pool that is there now: %w", err)
		}
		if text := err.Error(); text != said && errs.Class(err) != errs.ErrNotFound {
			said = text
			c.Logger.Warn("the pool that is there now cannot be served yet", "pool", c.Pool, "error", err, "hint", errs.Hint(err))
			tell.send("STATUS=waiting: " + text)
		}
		again := time.NewTimer(rest)
		select {
		case <-ctx.Done():
			again.Stop()
			return nil, nil
		case _, ok := <-events:
			if !ok {
				events = nil
			}
			rest = soon
		case <-c.Again:
		case <-ticks:
		case <-again.C:
			rest = min(2*rest, time.Minute)
		}
		again.Stop()
	}
}

// soon is when to look again after an event of device-mapper that came before all was done: a create and an import end with records, of which no event tells. From
// then on it is less and less often.
const soon = 250 * time.Millisecond

// openFree is open for a pool that nobody else serves.
func (c Config) openFree(ctx context.Context) (*layer.Store, error) {
	store, err := c.open(ctx)
	if err != nil {
		return nil, err
	}
	served, err := store.Pool().Served(ctx)
	if err == nil && served {
		err = fmt.Errorf("another process serves it: %w", errs.ErrBusy)
	}
	if err != nil {
		return nil, errors.Join(err, store.Close())
	}
	return store, nil
}

// passes tells whether what is wrong with a pool that takes another one's place may pass: it is being made or imported, somebody else serves it, its disks were
// taken away and may come back.
func passes(err error) bool {
	switch errs.Class(err) {
	case errs.ErrNotFound, errs.ErrBusy, errs.ErrDamaged:
		return true
	}
	return errors.Is(err, pool.ErrAbsent)
}
