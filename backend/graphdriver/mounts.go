package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// Get mounts a layer, read-only, or a container, counts it, and returns the directory. label is an SELinux label of the mount, or "".
func (d *Driver) Get(ctx context.Context, id, label string) (dir string, err error) {
	options := d.currentOptions().MountOptions
	if label != "" {
		if strings.ContainsAny(label, "\"\x00\n") {
			return "", fmt.Errorf("mount label %q: %w", label, errs.ErrInvalid)
		}
		options = append(slices.Clone(options), "context="+strconv.Quote(label))
	}
	err = d.with(ctx, []string{id}, func() error {
		name, err := d.name(ctx, id)
		if err != nil {
			return err
		}
		m, err := d.store.MountFor(ctx, name, user, layer.UserOptions{Options: options})
		dir = m.Dir
		return d.forgetGone(name, err)
	})
	return dir, err
}

// Put takes one Get back. With the last one the node is unmounted.
func (d *Driver) Put(ctx context.Context, id string) error {
	if d.find(id) != nil {
		return nil // it was never mounted
	}
	name, err := d.name(ctx, id)
	if err != nil {
		return err
	}
	return d.forgetGone(name, d.store.UnmountFor(ctx, name, user))
}

// adopt settles what an earlier Docker has counted: it was killed, or has ended. Its containers may be running, so that what is mounted of them is one use,
// which Docker ends when it has found out. Anything else only Docker itself had mounted.
func (d *Driver) adopt(ctx context.Context) error {
	return d.dismiss(ctx, func(role string) int {
		if role == roleContainer {
			return 1
		}
		return 0
	})
}

// Cleanup unmounts what is not being used when Docker ends.
func (d *Driver) Cleanup(ctx context.Context) error {
	return d.dismiss(ctx, func(string) int { return 0 })
}

// dismiss leaves so many uses of each mount that was counted for Docker. What somebody is working in stays mounted.
func (d *Driver) dismiss(ctx context.Context, keep func(role string) int) error {
	users, err := d.store.MountUsers(ctx)
	if err != nil {
		return err
	}
	for _, u := range users {
		if u.User != user || !strings.HasPrefix(u.Node, nodePrefix) {
			continue
		}
		n, err := d.store.Get(ctx, u.Node)
		if err == nil && n.Attrs[attrRole] != "" {
			err = d.store.Dismiss(ctx, n.Name, user, keep(n.Attrs[attrRole]))
		}
		if err != nil && !errors.Is(err, errs.ErrNotFound) && !errors.Is(err, errs.ErrBusy) {
			return err
		}
	}
	return nil
}

// GetMetadata tells what there is of a layer or container, for docker inspect.
func (d *Driver) GetMetadata(ctx context.Context, id string) (map[string]string, error) {
	if p := d.find(id); p != nil {
		return map[string]string{"Pool": d.store.Pool().Name(), "Node": nodePrefix + id}, nil
	}
	n, err := d.node(ctx, id)
	if err != nil {
		return nil, err
	}
	i, err := d.store.Inspect(ctx, n.Name)
	if err != nil {
		return nil, err
	}
	m := map[string]string{
		"Pool": d.store.Pool().Name(), "Node": i.Name, "DeviceSize": strconv.FormatInt(i.Size, 10), "Filesystem": i.FS, "Kind": string(i.Kind), "State": i.State,
	}
	if i.Device != "" {
		m["DeviceName"] = i.Device
	}
	return m, nil
}
