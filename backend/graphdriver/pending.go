package graphdriver

import (
	"context"
	"errors"
	"fmt"
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
}

func (d *Driver) find(id string) *pending {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.pending[id]
}

// Create promises a layer on top of a parent, "" for none. It becomes a node when it is filled (ApplyDiff) or first used.
func (d *Driver) Create(ctx context.Context, id, parent string) error {
	name, err := nodeName(id)
	if err != nil {
		return err
	}
	if parent != "" {
		if _, err := d.settled(ctx, parent); err != nil { // so that no promise rests on another
			return fmt.Errorf("create layer %q: parent: %w", id, err)
		}
	}
	_, err = d.store.Get(ctx, name)
	if err == nil {
		err = errs.ErrExists
	}
	if !errors.Is(err, errs.ErrNotFound) {
		return fmt.Errorf("create layer %q: %w", id, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.pending[id] != nil {
		return fmt.Errorf("create layer %q: %w", id, errs.ErrExists)
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

// settle makes a node of a layer that has no content yet: one that can be written to.
func (d *Driver) settle(ctx context.Context, id string) error {
	p, err := d.take(ctx, id)
	if p == nil || err != nil {
		return err
	}
	err = d.createWritable(ctx, id, p.parent, 0, roleLayer)
	d.give(p, err == nil)
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
	return d.createWritable(ctx, id, parent, size, role)
}

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
		if err := d.settle(ctx, parent); err != nil {
			return fmt.Errorf("create %q: parent: %w", id, err)
		}
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
