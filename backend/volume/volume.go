// Package volume is a volume plugin of Docker on layer: each volume is a node of its name, with a device and a file system of its own.
//
// All volumes of the pool are Docker's to see and to use, whoever made them. A mount is counted by the word that Docker gives with it, so that several
// containers share a volume; it outlives Docker and this process, as containers do. What a Docker that was killed had mounted is unmounted when no container uses it any more.
package volume

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/docker/go-units"

	"github.com/dmlayer/dmlayer/backend/plugin"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// Driver is the volume driver on one pool's nodes. It is safe for concurrent use.
type Driver struct {
	store *layer.Store
	look  chan struct{} // holds a token when the dead are to be looked for
}

// New returns the driver of a pool's volumes.
func New(store *layer.Store) *Driver { return &Driver{store, make(chan struct{}, 1)} }

// Volume is a volume as Docker sees it.
type Volume struct {
	Name       string
	Mountpoint string `json:",omitempty"` // "" while it is not mounted
	CreatedAt  time.Time
	Status     map[string]any `json:",omitempty"`
}

// userPrefix is of those who mount volumes for Docker.
const userPrefix = "docker-volume-"

// userOf makes a user of the word that Docker mounts with.
func userOf(id string) string {
	sum := sha256.Sum256([]byte(id))
	return userPrefix + hex.EncodeToString(sum[:16])
}

// Create makes a volume. Options: size, as in 20G; fs, which must be the pool's; from, a volume, snapshot or layer to begin with. A volume that is
// there is no error, unless the options ask for another one.
func (d *Driver) Create(ctx context.Context, name string, options map[string]string) error {
	so, fs, err := parse(options)
	if err != nil {
		return fmt.Errorf("create volume %q: %w", name, err)
	}
	if so.Parent == "" {
		err = d.checkFS(fs, d.store.Pool().Record().FS)
	} else {
		var from layer.Node
		if from, err = d.store.Get(ctx, so.Parent); err == nil {
			err = d.checkFS(fs, from.FS)
		}
	}
	if err != nil {
		return fmt.Errorf("create volume %q: %w", name, err)
	}
	_, err = d.store.CreateSnapshot(ctx, name, so)
	if !errors.Is(err, errs.ErrExists) {
		return err
	}
	n, gerr := d.volume(ctx, name)
	if gerr != nil {
		return err
	}
	if so.Size != 0 && so.Size != n.Size || so.Parent != "" && so.Parent != n.Parent {
		return errs.WithHint(err, "it was made with other options")
	}
	return nil
}

// parse reads the options of a new volume.
func parse(options map[string]string) (so layer.SnapshotOptions, fs string, err error) {
	so.Kind = layer.KindVolume
	so.Attrs = map[string]string{layer.AttrKeeper: "docker"}
	for key, value := range options {
		switch key {
		case "size":
			if so.Size, err = units.RAMInBytes(value); err == nil && (so.Size <= 0 || value[0] == '+') {
				err = errors.New("not a size")
			}
			if err != nil {
				err = errs.WithHint(fmt.Errorf("option size=%q: %w: %w", value, err, errs.ErrInvalid), "a number and a unit, such as 20G")
			}
		case "fs":
			fs = value
		case "from":
			if so.Parent = value; value == "" {
				err = fmt.Errorf("option from: nothing is named: %w", errs.ErrInvalid)
			}
		default:
			err = errs.WithHint(fmt.Errorf("option %q: unknown: %w", key, errs.ErrInvalid), "a volume has size=SIZE, fs=ext4 or fs=xfs, and from=NODE")
		}
		if err != nil {
			return so, "", err
		}
	}
	return so, fs, nil
}

func (d *Driver) checkFS(want, have string) error {
	if want == "" || want == have {
		return nil
	}
	err := fmt.Errorf("option fs=%q: it would have %s: %w", want, have, errs.ErrInvalid)
	return errs.WithHint(err, "a pool has one file system: dmlayer pool create --fs, and dmlayer serve --pool for a pool of the other")
}

// volume returns the node of a volume.
func (d *Driver) volume(ctx context.Context, name string) (layer.Node, error) {
	n, err := d.store.Get(ctx, name)
	if err == nil && n.Kind != layer.KindVolume {
		err = fmt.Errorf("%q is a %s, not a volume: %w", name, n.Kind, errs.ErrNotFound)
	}
	return n, err
}

// Mount mounts a volume for whoever Docker's id stands for, and returns the directory. The dockerd that asks is noted with it.
func (d *Driver) Mount(ctx context.Context, name, id string) (string, error) {
	if _, err := d.volume(ctx, name); err != nil {
		return "", err
	}
	m, err := d.store.MountFor(ctx, name, userOf(id), layer.UserOptions{Once: true, Holder: string(plugin.Peer(ctx))})
	return m.Dir, err
}

// Unmount ends the Mount of an id. With the last one the volume is unmounted.
func (d *Driver) Unmount(ctx context.Context, name, id string) error {
	if _, err := d.volume(ctx, name); err != nil {
		return err
	}
	return d.store.UnmountFor(ctx, name, userOf(id))
}

// Get returns a volume.
func (d *Driver) Get(ctx context.Context, name string) (Volume, error) {
	if _, err := d.volume(ctx, name); err != nil {
		return Volume{}, err
	}
	i, err := d.store.Inspect(ctx, name)
	if err != nil {
		return Volume{}, err
	}
	v := d.public(i)
	v.Status = map[string]any{"pool": d.store.Pool().Name(), "size": strconv.FormatInt(i.Size, 10), "fs": i.FS, "state": i.State}
	if i.Parent != "" {
		v.Status["from"] = i.Parent
	}
	return v, nil
}

// List returns all volumes of the pool by name.
func (d *Driver) List(ctx context.Context) ([]Volume, error) {
	infos, err := d.store.List(ctx)
	if err != nil {
		return nil, err
	}
	volumes := []Volume{}
	for _, i := range infos {
		if i.Kind == layer.KindVolume {
			volumes = append(volumes, d.public(i))
		}
	}
	return volumes, nil
}

// public shows a volume to Docker. Only where MountFor mounts it is for containers.
func (d *Driver) public(i layer.Info) Volume {
	v := Volume{Name: i.Name, CreatedAt: i.Created}
	if place := d.store.MountPoint(i.Name); slices.Contains(i.Mountpoints, place) {
		v.Mountpoint = place
	}
	return v
}
