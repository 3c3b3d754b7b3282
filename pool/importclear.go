package pool

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// clear sees to it that nothing uses the folder and that its place is free. The start/stop lock is held exclusively.
func (im *importer) clear(ctx context.Context) error {
	if im.inPlace {
		return im.clearInPlace(ctx)
	}
	if err := im.notRunning(ctx); err != nil {
		return err
	}
	if err := im.clearPlace(ctx); err != nil {
		return errs.WithHint(fmt.Errorf("pool %q: %w", im.p.files.name, err), "--name gives it another name")
	}
	_ = os.Remove(im.p.files.dir()) // an empty one
	return im.sameFileSystem()
}

// clearInPlace takes down what runs without records, or with others, once nothing uses it.
func (im *importer) clearInPlace(ctx context.Context) error {
	p := im.p
	err := im.readRecord(ctx)
	if err == nil && p.record.State != metadata.PoolReady {
		return fmt.Errorf("pool %q is %s: %w", p.files.name, p.record.State, errs.ErrNotFound)
	}
	if err == nil && im.look() == nil && (candidate{Copy: &metadata.Copy{Pool: p.record}}).pairs(im.Status.TransactionID) {
		return im.healthy()
	}
	devices, err := im.backing.devices(ctx)
	if err != nil {
		return err
	}
	uuid, err := p.runningOver(devices)
	if err != nil {
		return err
	}
	// What the folder's files say, and what runs on them, is not known from its record.
	p.record = metadata.Pool{Name: p.files.name, UUID: uuid, Backing: im.lies}
	if uuid != "" {
		if err := im.idle(ctx); err != nil {
			return err
		}
		if err := im.deactivateAll(ctx); err != nil {
			return err
		}
	}
	return im.backing.detached(ctx)
}

// notAttached is ErrBusy while somebody uses what the pool lies on, which is not in its place.
func (im *importer) notAttached(ctx context.Context) error {
	left, err := im.backing.check(ctx, false)
	if err != nil {
		return err
	}
	for _, f := range left {
		if f.Code == FoundBackingLeft {
			err := fmt.Errorf("%s is attached to %s: %w", f.Object, f.Detail, errs.ErrBusy)
			return errs.WithHint(err, "stop the pool where it runs; losetup -d "+f.Detail+" detaches what nobody uses")
		}
	}
	return nil
}

// notRunning is ErrBusy while a pool runs on it, too.
func (im *importer) notRunning(ctx context.Context) error {
	if err := im.notAttached(ctx); err != nil {
		return err
	}
	devices, err := im.backing.devices(ctx)
	if err != nil {
		return err
	}
	uuid, err := im.p.runningOver(devices)
	if err == nil && uuid != "" {
		err = errs.WithHint(fmt.Errorf("pool %s runs on it: %w", uuid, errs.ErrBusy), "stop the pool where it runs")
	}
	return err
}

// uuidLength is that of a pool's UUID, in hexadecimal digits.
const uuidLength = 32

// isUUID tells whether a text is one of a pool.
func isUUID(s string) bool {
	raw, err := hex.DecodeString(s)
	return err == nil && 2*len(raw) == uuidLength
}

// runningOver returns the UUID of the pool whose metadata device lies on one of these, "" for none.
func (p *Pool) runningOver(devices []devmapper.DevNum) (string, error) {
	list, err := p.dm.List(dmPrefix)
	if err != nil {
		return "", err
	}
	for _, d := range list {
		uuid, ok := strings.CutSuffix(strings.TrimPrefix(string(d.UUID), dmPrefix), "-"+suffixMetadata)
		if !ok || len(uuid) != uuidLength {
			continue
		}
		deps, err := p.dm.Deps(devmapper.ByUUID(d.UUID))
		if errors.Is(err, devmapper.ErrNotFound) {
			continue
		}
		if err != nil {
			return "", err
		}
		if slices.ContainsFunc(devices, func(d devmapper.DevNum) bool { return slices.Contains(deps, d) }) {
			return uuid, nil
		}
	}
	return "", nil
}

// alone tells whether the pool is no other's that runs here or is known here.
func (im *importer) alone(ctx context.Context, uuid string) error {
	list, err := im.p.dm.List(devmapper.UUID(uuidPrefix(uuid)))
	if err != nil {
		return err
	}
	if len(list) > 0 {
		err := fmt.Errorf("pool %s runs on other files (%s): one is a copy of the other: %w", uuid, list[0].Name, errs.ErrBusy)
		return errs.WithHint(err, "stop that pool and take it away, if it is the copy")
	}
	names, err := List(ctx, im.p.files.dirs)
	if err != nil {
		return err
	}
	for _, name := range names {
		if name == im.p.files.name && im.inPlace || name == im.from.name && im.from.dirs.Root == im.p.files.dirs.Root {
			continue
		}
		// A store that cannot be read is looked at when its own pool is used.
		if known, err := uuidOf(ctx, files{dirs: im.p.files.dirs, name: name}); err == nil && known == uuid {
			err := fmt.Errorf("pool %q has the UUID %s too: %w", name, uuid, errs.ErrExists)
			return errs.WithHint(err, "one is a copy of the other, and only one of them can be used here")
		}
	}
	return nil
}

func uuidOf(ctx context.Context, f files) (uuid string, err error) {
	store := metadata.New(f.store(), unlocked{})
	defer store.Close()
	err = store.View(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		uuid = r.UUID
		return err
	})
	return uuid, err
}
