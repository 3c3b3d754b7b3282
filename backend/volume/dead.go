package volume

import (
	"context"
	"errors"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/process"
	"github.com/dmlayer/dmlayer/layer"
)

// again is how long a volume that something keeps is left alone before it is looked at again.
var again = 10 * time.Second

// Run unmounts volumes that dockerds had mounted which have died since: a dockerd that was killed knows nothing of them when it comes again. A container that
// runs on without its dockerd, as with --live-restore, keeps what it uses. They are looked for at the beginning, whenever a dockerd comes, and now and
// then while a container keeps some. Run ends with the context; failed is called with what could not be done, once.
func (d *Driver) Run(ctx context.Context, failed func(error)) {
	kept := keepers{}
	said := ""
	for {
		err := d.dismissDead(ctx, kept)
		if err == nil {
			said = ""
		} else if text := err.Error(); text != said && ctx.Err() == nil {
			failed(err)
			said = text
		}
		var later <-chan time.Time // never, where nothing is kept
		if len(kept) > 0 {
			later = time.After(again)
		}
		select {
		case <-ctx.Done():
			return
		case <-d.look:
		case <-later:
		}
	}
}

// wake has Run look again.
func (d *Driver) wake() {
	select {
	case d.look <- struct{}{}:
	default: // it will
	}
}

// keepers are the volumes that dead users have left mounted, each with a process that uses it, if that is known. As long as that lives nobody looks for others.
type keepers map[string]process.Identity

func (d *Driver) dismissDead(ctx context.Context, kept keepers) error {
	users, err := d.store.MountUsers(ctx)
	if err != nil {
		return err
	}
	volumes := map[string]bool{}
	for _, u := range users {
		if died(u) {
			volumes[u.Node] = true
		}
	}
	for name := range kept {
		if !volumes[name] {
			delete(kept, name)
		}
	}
	var all error
	for name := range volumes {
		if by := kept[name]; by != "" && !by.Dead() {
			continue
		}
		left, err := d.store.DismissDead(ctx, name, died)
		delete(kept, name)
		switch {
		case errors.Is(err, errs.ErrNotFound): // removed meanwhile
		case err != nil:
			all = errors.Join(all, err)
			kept[name] = ""
		case left.Yes:
			kept[name], _ = process.Identify(left.PID) // one that has just ended is nobody
		}
	}
	return all
}

// died tells whether it was a dockerd that mounted for a user, and has ended.
func died(u layer.MountUser) bool {
	return strings.HasPrefix(u.User, userPrefix) && process.Identity(u.Holder).Dead()
}
