package graphdriver

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// ApplyDiff fills a layer with an uncompressed layer tar, which is read to its end, and returns the bytes of its files. When it returns nil the layer is
// whole, durable and immutable; after an error, or a kill, nothing is left of it. A container, or what was used before it was filled, gets
// the content on top of what it has.
//
// A layer that was promised to a process that has ended is ErrNotFound: see pending.
func (d *Driver) ApplyDiff(ctx context.Context, id string, tar io.Reader) (int64, error) {
	in := &counted{r: tar}
	size, err := d.applyDiff(ctx, id, in)
	if err != nil {
		return 0, fmt.Errorf("fill layer %q: %w", id, err)
	}
	return size, nil
}

func (d *Driver) applyDiff(ctx context.Context, id string, in *counted) (int64, error) {
	p, err := d.take(ctx, id)
	if err != nil {
		return 0, err
	}
	if p == nil {
		return d.applyOver(ctx, id, in)
	}
	size, made, err := d.fill(ctx, p, in)
	if err == nil && !made {
		size, err = d.fillWritable(ctx, p, in)
	}
	d.give(p, err == nil || p.made || in.n > 0) // what was read of the stream will not come again
	return size, err
}

// fillWritable makes a node that can be written to of a stream.
func (d *Driver) fillWritable(ctx context.Context, p *pending, in *counted) (int64, error) {
	if err := d.makeNode(ctx, p); err != nil {
		return 0, err
	}
	size, err := d.applyOver(ctx, p.id, in)
	if err != nil {
		return 0, d.unmake(ctx, p, err)
	}
	return size, nil
}

// fill makes a layer of the stream. Where its parent is a node that can be written to, and thus none of a layer, nothing is made or read.
func (d *Driver) fill(ctx context.Context, p *pending, in *counted) (size int64, made bool, err error) {
	name, err := nodeName(p.id)
	if err != nil {
		return 0, false, err
	}
	lo := layer.LayerOptions{Attrs: attrs(roleLayer)}
	if p.parent == "" {
		lo.Size = d.currentOptions().BaseSize
	} else {
		parent, err := d.node(ctx, p.parent)
		if err != nil {
			return 0, false, fmt.Errorf("parent: %w", err)
		}
		if parent.Kind != layer.KindLayer {
			return 0, false, nil
		}
		lo.Parent = parent.Name
	}
	_, err = d.store.CreateLayer(ctx, name, lo, func(ctx context.Context, w *layer.LayerWriter) error {
		size, err = d.extract(ctx, w.Root(), in)
		return err
	})
	return size, err == nil, err
}

// applyOver extracts a stream over a node that can be written to.
func (d *Driver) applyOver(ctx context.Context, id string, in *counted) (size int64, err error) {
	n, err := d.node(ctx, id)
	if errors.Is(err, errs.ErrNotFound) {
		return 0, errs.WithHint(err, "dmlayer was started again since the layer was created: load or pull the image again")
	}
	if err != nil {
		return 0, err
	}
	if n.Kind == layer.KindLayer {
		return 0, fmt.Errorf("it is filled already: %w", errs.ErrInvalid)
	}
	err = d.store.Edit(ctx, n.Name, func(ctx context.Context, root string) error {
		size, err = d.extract(ctx, root, in)
		return err
	})
	return size, err
}

func (d *Driver) extract(ctx context.Context, root string, in *counted) (int64, error) {
	stats, err := layertar.Apply(ctx, root, in, layertar.ApplyOptions{ForbidDevices: d.store.Pool().Record().ForbidDevices})
	if err == nil && in.n == 0 {
		// Even an empty archive has an end. Docker sends nothing where a connection broke that had taken the stream.
		err = fmt.Errorf("the stream is empty: %w", errs.ErrInvalid)
	}
	return stats.Bytes, err
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// Diff writes the layer tar that makes a layer or container of its parent, or of nothing where parent is "".
func (d *Driver) Diff(ctx context.Context, id, parent string, w io.Writer) error {
	return d.compare(ctx, id, parent, func(ctx context.Context, lower, upper string, o layertar.DiffOptions) error {
		return layertar.WriteDiff(ctx, w, lower, upper, layertar.WriteOptions{DiffOptions: o})
	})
}

// Changes calls fn for each path that differs between a layer or container and its parent, or nothing.
func (d *Driver) Changes(ctx context.Context, id, parent string, fn func(layertar.Change) error) error {
	return d.compare(ctx, id, parent, func(ctx context.Context, lower, upper string, o layertar.DiffOptions) error {
		return layertar.Changes(ctx, lower, upper, o, fn)
	})
}

// DiffSize returns the bytes of the files that differ between a layer or container and its parent, or nothing. A file counts once however many names it has.
func (d *Driver) DiffSize(ctx context.Context, id, parent string) (int64, error) {
	var size int64
	linked := map[uint64]bool{}
	err := d.compare(ctx, id, parent, func(ctx context.Context, lower, upper string, o layertar.DiffOptions) error {
		return layertar.Changes(ctx, lower, upper, o, func(c layertar.Change) error {
			if c.Kind == layertar.Deleted || c.Implied {
				return nil
			}
			fi, err := os.Lstat(filepath.Join(upper, c.Path))
			if errors.Is(err, os.ErrNotExist) {
				return nil // a container is at work
			}
			if err != nil || !fi.Mode().IsRegular() {
				return err
			}
			if st, ok := fi.Sys().(*syscall.Stat_t); ok && st.Nlink > 1 {
				if linked[st.Ino] {
					return nil
				}
				linked[st.Ino] = true
			}
			size += fi.Size()
			return nil
		})
	})
	return size, err
}

// compare mounts a node and its parent for a look at both.
func (d *Driver) compare(ctx context.Context, id, parent string, fn func(ctx context.Context, lower, upper string, o layertar.DiffOptions) error) error {
	if parent == "" {
		return d.with(ctx, []string{id}, func() error {
			upper, err := d.node(ctx, id)
			if err != nil {
				return err
			}
			return d.store.View(ctx, []string{upper.Name}, func(ctx context.Context, roots []string) error {
				return fn(ctx, "", roots[0], layertar.DiffOptions{})
			})
		})
	}
	return d.with(ctx, []string{id, parent}, func() error {
		upper, err := d.node(ctx, id)
		if err != nil {
			return err
		}
		lower, err := d.node(ctx, parent)
		if err != nil {
			return fmt.Errorf("parent: %w", err)
		}
		same, err := d.descends(ctx, upper, lower)
		if err != nil {
			return err
		}
		return d.store.View(ctx, []string{lower.Name, upper.Name}, func(ctx context.Context, roots []string) error {
			return fn(ctx, roots[0], roots[1], layertar.DiffOptions{SameLineage: same})
		})
	})
}

// descends tells whether a node began as a copy of another, so that files that nobody touched can be told by their inodes.
func (d *Driver) descends(ctx context.Context, n, from layer.Node) (bool, error) {
	for n.Parent != "" {
		if n.Parent == from.Name {
			return true, nil
		}
		var err error
		if n, err = d.store.Get(ctx, n.Parent); err != nil {
			return false, err
		}
	}
	return false, nil
}
