package image

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// makeAll makes the layers of all images, those that are not there.
func (l *loader) makeAll(ctx context.Context) error {
	for _, a := range l.images {
		if err := l.makeChain(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// makeChain makes the layers of an image, those that are not there. Others may make and remove the same
// ones meanwhile.
func (l *loader) makeChain(ctx context.Context, a *archived) error {
	attempts := 0
	for i := 0; i < len(a.layers); {
		lay := &a.layers[i]
		n, err := l.Get(ctx, lay.name)
		if err == nil {
			if err := l.useExisting(lay, n); err != nil {
				return err
			}
			i, attempts = i+1, 0
			continue
		}
		if !errors.Is(err, ErrNotFound) {
			return err
		}
		made, err := l.makeFrom(ctx, a, i)
		if err != nil {
			return err
		}
		if i += made; made > 0 {
			attempts = 0
		} else if attempts++; attempts == maxAttempts {
			return fmt.Errorf("layer %q: %w: %w", lay.name, errVanished, ErrBusy)
		}
	}
	return nil
}

// useExisting checks that a node of a layer's name is that layer: names can be given by users too.
func (l *loader) useExisting(lay *archivedLayer, n layer.Node) error {
	if n.Kind != layer.KindLayer || n.Attrs[attrChainID] != chainOf(lay.name) {
		err := fmt.Errorf("layer %q: a %s of that name is not from an image: %w", lay.name, n.Kind, ErrExists)
		return errs.WithHint(err, "rename it, then load again")
	}
	if err := n.Err(); err != nil {
		return err
	}
	l.attrs[lay.name] = n.Attrs
	if !l.settled[lay.name] {
		size := max(sizeAttr(n.Attrs, attrSize), 0)
		l.settle(lay, Event{Stage: StageExists, Layer: lay.name, Done: size, Total: size})
	}
	return nil
}

// settle takes note that a layer is there.
func (l *loader) settle(lay *archivedLayer, e Event) {
	l.settled[lay.name] = true
	l.report.event(e)
	if l.uses != nil && l.uses.done(lay) && l.known(lay) {
		l.tree.(*streamTree).release(lay.path)
	}
}

// chain is layers of an image that are made one on the other.
type chain struct {
	*loader
	layers []archivedLayer
	noted  int          // of them, those that are known to be there
	next   *layerReader // what is read ahead of its turn; nil for nothing
	failed error        // what a fill failed with
}

// makeFrom makes the layers of an image from the i-th on, up to one that is there or that somebody else
// is making, and returns how many it made.
func (l *loader) makeFrom(ctx context.Context, a *archived, i int) (int, error) {
	c := &chain{loader: l, layers: a.layers[i:]}
	parent := ""
	if i > 0 {
		parent = a.layers[i-1].name
	}
	var all []newLayer
	for n := range c.layers {
		lay := &c.layers[n]
		all = append(all, newLayer{lay.name, layer.LayerOptions{Parent: parent, Attrs: lay.attrs(i + n)}, func(fctx context.Context, w layerWriter) error {
			c.failed = c.fill(ctx, fctx, w, n)
			return c.failed
		}})
		parent = lay.name
	}
	made, err := l.CreateLayers(ctx, all)
	if c.next != nil {
		err = errors.Join(err, c.next.close())
	}
	if noted := c.note(len(made)); err == nil {
		err = noted
	}
	switch {
	case c.failed == nil && errors.Is(err, ErrNotFound):
		err = fmt.Errorf("%w: %w", err, errVanished)
	case c.failed == nil && errors.Is(err, ErrExists):
		err = nil // somebody else has made the first one
	}
	return len(made), err
}

// note takes note of the layers before the n-th, which are there and last.
func (c *chain) note(n int) error {
	var err error
	for ; c.noted < n; c.noted++ {
		lay := &c.layers[c.noted]
		c.made = append(c.made, lay.name)
		size := c.found[lay.name].tar
		c.settle(lay, Event{Stage: StageDone, Layer: lay.name, Done: size, Total: size})
		err = errors.Join(err, pointMade.Hit())
	}
	return err
}

// fill fills the n-th layer. In the end it begins to read the next one, which so comes in while this one
// is made durable; the reading lasts as long as the outer context.
func (c *chain) fill(outer, ctx context.Context, w layerWriter, n int) (err error) {
	if err := c.note(n); err != nil {
		return err
	}
	in := c.next
	if c.next = nil; in == nil {
		in = c.readLayer(outer, &c.layers[n], StageUnpack)
	}
	defer func() { err = errors.Join(err, in.close()) }()
	f, err := c.unpack(ctx, w, in)
	if err != nil {
		return err
	}
	c.found[in.lay.name] = f
	w.SetAttr(attrDigest, f.blob.String())
	w.SetAttr(attrPacked, strconv.FormatInt(f.packed, 10))
	w.SetAttr(attrSize, strconv.FormatInt(f.tar, 10))
	if n+1 < len(c.layers) {
		c.next = c.readLayer(outer, &c.layers[n+1], StageUnpack)
	}
	return nil
}

// attrs are what the node tells of its layer before that is unpacked.
func (lay *archivedLayer) attrs(position int) map[string]string {
	return map[string]string{
		attrChainID:   chainOf(lay.name),
		attrDiffID:    lay.diffID.String(),
		attrMediaType: lay.mediaType,
		attrPosition:  strconv.Itoa(position),
	}
}
