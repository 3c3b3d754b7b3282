package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// Remove removes a volume, with what is in it. One that somebody works in, that a container has, or that another dockerd which lives has mounted, is ErrBusy, and
// names him. What else is mounted of a volume that a dockerd removes was mounted for containers that are gone, by it or by one that has died.
func (d *Driver) Remove(ctx context.Context, name string) error {
	if _, err := d.volume(ctx, name); err != nil {
		return err
	}
	err := d.remove(ctx, name)
	if !errors.Is(err, errs.ErrBusy) {
		return err
	}
	asker := string(plugin.Peer(ctx))
	left, err := d.store.DismissDead(ctx, name, func(u layer.MountUser) bool { return died(u) || mountedBy(u, asker) })
	if err != nil {
		return err
	}
	if left.Yes {
		return fmt.Errorf("remove volume %q: %w", name, left.Busy)
	}
	err = d.remove(ctx, name)
	if errors.Is(err, errs.ErrBusy) {
		err = d.mountedFor(ctx, name, err)
	}
	return err
}

// mountedBy tells whether a user is a dockerd's. Of whom nobody knows, nobody is.
func mountedBy(u layer.MountUser, dockerd string) bool {
	return strings.HasPrefix(u.User, userPrefix) && u.Holder == dockerd && dockerd != ""
}

// mountedFor is busy, with the dockerd for whom the volume is still mounted, if there is one.
func (d *Driver) mountedFor(ctx context.Context, name string, busy error) error {
	users, err := d.store.MountUsers(ctx)
	if err != nil {
		return errors.Join(busy, err)
	}
	for _, u := range users {
		if u.Node == name && strings.HasPrefix(u.User, userPrefix) && u.Holder != "" {
			pid, _, _ := strings.Cut(u.Holder, "-")
			return fmt.Errorf("%w: the dockerd of process %s has it mounted", busy, pid)
		}
	}
	return busy
}

// remove removes a node, and leaves its blocks to whoever serves the pool.
func (d *Driver) remove(ctx context.Context, name string) error {
	_, err := d.store.RemoveNode(ctx, name, layer.RemoveOptions{NoWait: true})
	return err
}
