package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// pending is a layer that Docker has created and not filled. It is in memory only, and that is what makes filling safe: Docker sends what is left of a
// stream once more when a connection breaks, so that a process that did not see the layer's beginning must not take the rest for the whole.
type pending struct {
	id, parent string
	turn       chan struct{} // holds a token while somebody makes the node
	done       bool          // under the turn: it is a node now, or is gone
	made       bool          // under the turn: there is a node of it
}

func (d *Driver) find(id string) *pending {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pending[id]
}

// Create promises a layer on top of a parent, "" for none. It becomes a node when it is filled (ApplyDiff) or first used.
func (d *Driver) Create(ctx context.Context, id, parent string) error {
	err := d.checkFree(ctx, id)
	if err == nil && parent == "" {
		err = d.promise(id, "")
	} else if err == nil {
		// The parent becomes a node, so that no promise rests on another.
		if err = d.with(ctx, []string{parent}, func() error { return d.promise(id, parent) }); err != nil {
			err = fmt.Errorf("parent: %w", err)
		}
	}
	if err != nil {
		return fmt.Errorf("create layer %q: %w", id, err)
	}
	return nil
}

// checkFree is nil where an id can be given to something new.
func (d *Driver) checkFree(ctx context.Context, id string) error {
	name, err := nodeName(id)
	if err != nil {
		return err
	}
	if d.find(id) != nil {
		return errs.ErrExists
	}
	if _, err = d.store.Get(ctx, name); err == nil {
		return errs.ErrExists
	}
	if errors.Is(err, errs.ErrNotFound) {
		return nil
	}
	return err
}

func (d *Driver) promise(id, parent string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending[id] != nil {
		return errs.ErrExists
	}
	d.pending[id] = &pending{id: id, parent: parent, turn: make(chan struct{}, 1)}
	return nil
}

// take waits for the turn of a layer that has no content yet. It returns nil where it is a node by now, or never was pending. Whoever gets
// it calls give, and says whether it is pending no more.
func (d *Driver) take(ctx context.Context, id string) (*pending, error) {
	p := d.find(id)
	if p == nil {
		return nil, nil
	}
	select {
	case p.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for layer %q: %w", id, context.Cause(ctx))
	}
	if p.done {
		<-p.turn
		return nil, nil
	}
	return p, nil
}

func (d *Driver) give(p *pending, done bool) {
	if done {
		d.mu.Lock()
		delete(d.pending, p.id)
		d.mu.Unlock()
		p.done = true
	}
	<-p.turn
}

// forget drops a layer that has no content yet.
func (d *Driver) forget(ctx context.Context, id string) (gone bool, err error) {
	p, err := d.take(ctx, id)
	if p == nil || err != nil {
		return false, err
	}
	d.give(p, true)
	return true, nil
}

// with runs fn with nodes for these ids: of a layer that has no content yet one is made that can be written to. Where one of the ids is not known
// none is made, and where fn fails those that were made are promises again: what is refused has changed nothing.
func (d *Driver) with(ctx context.Context, ids []string, fn func() error) error {
	promises, err := d.takeAll(ctx, ids)
	if err == nil {
		err = d.makeAll(ctx, promises)
	}
	if err == nil {
		err = fn()
	}
	for _, p := range promises {
		if err != nil && p.made {
			err = d.unmake(ctx, p, err)
		}
		d.give(p, p.made)
	}
	return err
}

// takeAll waits for the turns of those layers that have no content yet, and looks for the others. Turns are taken by id, so that nobody waits for
// somebody who waits for him.
func (d *Driver) takeAll(ctx context.Context, ids []string) (promises []*pending, err error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	var others []string
	for _, id := range ids {
		p, err := d.take(ctx, id)
		if err != nil {
			return promises, err
		}
		if p == nil {
			others = append(others, id)
		} else {
			promises = append(promises, p)
		}
	}
	if len(promises) == 0 {
		return nil, nil // whoever uses the others looks for them
	}
	for _, id := range others {
		if _, err := d.name(ctx, id); err != nil {
			return promises, err
		}
	}
	return promises, nil
}

func (d *Driver) makeAll(ctx context.Context, promises []*pending) error {
	for _, p := range promises {
		if err := d.makeNode(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// makeNode makes a node that can be written to of a layer that has no content yet. The caller has its turn.
func (d *Driver) makeNode(ctx context.Context, p *pending) error {
	if err := d.createWritable(ctx, p.id, p.parent, 0, roleLayer); err != nil {
		return err
	}
	p.made = true
	return nil
}

// unmake takes a makeNode back because of an error, to which it adds its own.
func (d *Driver) unmake(ctx context.Context, p *pending, err error) error {
	name := nodePrefix + p.id
	rerr := d.remove(context.WithoutCancel(ctx), name)
	if rerr != nil {
		return errors.Join(err, rerr) // it stays a node
	}
	d.known.Delete(name)
	p.made = false
	return err
}

// CreateReadWrite makes a container, or what lies between one and its image, as a snapshot of its parent. A size of 0 is that of the parent, or
// what Docker's options say.
func (d *Driver) CreateReadWrite(ctx context.Context, id, parent string, size int64) error {
	if p := d.find(id); p != nil {
		return fmt.Errorf("create %q: %w", id, errs.ErrExists)
	}
	role := roleContainer
	if strings.HasSuffix(id, initSuffix) {
		role = roleInit
	}
	if parent == "" {
		return d.createWritable(ctx, id, "", size, role)
	}
	return d.with(ctx, []string{parent}, func() error { return d.createWritable(ctx, id, parent, size, role) })
}

// createWritable makes a node that can be written to, of a parent that is a node.
func (d *Driver) createWritable(ctx context.Context, id, parent string, size int64, role string) error {
	name, err := nodeName(id)
	if err != nil {
		return err
	}
	so := layer.SnapshotOptions{Size: size, Attrs: attrs(role)}
	base := d.currentOptions().BaseSize
	if parent == "" {
		if size == 0 {
			so.Size = base
		}
	} else {
		if so.Parent, err = d.name(ctx, parent); err != nil {
			return fmt.Errorf("create %q: parent: %w", id, err)
		}
		if size == 0 && base > 0 {
			n, err := d.store.Get(ctx, so.Parent)
			if err != nil {
				return fmt.Errorf("create %q: parent: %w", id, d.forgetGone(so.Parent, err))
			}
			if base > n.Size {
				so.Size = base
			}
		}
	}
	if _, err = d.store.CreateSnapshot(ctx, name, so); err == nil {
		d.known.Store(name, true)
	}
	return err
}
