package layer

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointChainNext = fault.New("layer.chain.next-locked")
	pointLayerDone = fault.New("layer.chain.recorded")
)

// NewLayer is a layer that CreateLayers is to make.
type NewLayer struct {
	Name    string
	Options LayerOptions // Parent counts only for the first; the others stand on the one before
	Fill    func(ctx context.Context, w *LayerWriter) error
}

// CreateLayers makes layers, one on the other, with one mount for all of them where the file system allows
// (ext4): each but the last is a thin snapshot of the still mounted device, frozen for the moment. Every
// layer is whole and recorded before the next one's Fill is called.
//
// It ends early, without an error, before a layer (other than the first) that exists or that somebody else
// is making right now; the caller goes on from there with another call. Where the first exists, or a name
// is taken while its layer is filled, the error is ErrExists. It returns the layers made, also beside an
// error; those stay.
func (s *Store) CreateLayers(ctx context.Context, layers []NewLayer) ([]Node, error) {
	for _, l := range layers {
		if err := checkNew(string(KindLayer), l.Name, l.Options.Size, l.Options.Attrs); err != nil {
			return nil, err
		}
	}
	if len(layers) == 0 {
		return nil, nil
	}
	unlock, err := s.pool.LockChain(ctx, layers[0].Name)
	if err != nil {
		return nil, err
	}
	c := &chain{s: s, todo: slices.Clone(layers), unlock: unlock, unlockNext: func() {}}
	defer c.end()
	for len(c.todo) > 0 {
		if err := c.run(ctx); err != nil {
			return c.made, opError("create layer", c.todo[0].Name, err)
		}
	}
	return c.made, nil
}

// chain is what CreateLayers has made and has still to make.
type chain struct {
	s          *Store
	made       []Node
	todo       []NewLayer // the first one is being made
	unlock     func()     // of its chain lock
	unlockNext func()     // of the one after it
}

func (c *chain) end() {
	c.unlock()
	c.unlockNext()
}

// run makes layers in one mount, at least one. What has called Fill is not done again.
func (c *chain) run(ctx context.Context) error {
	for {
		filled, err := c.tryRun(ctx)
		if filled || !errors.Is(err, errStale) {
			return err
		}
	}
}

// claimNext takes the chain lock of the layer after this one. It is tried, not waited for, because id
// locks are held, and chain locks come before those. Where it cannot be had or that layer exists, the
// chain ends here.
func (c *chain) claimNext(ctx context.Context, o *op) error {
	if len(c.todo) == 1 {
		return nil
	}
	name := c.todo[1].Name
	unlock, ok, err := c.s.pool.TryLockChain(ctx, name)
	if err != nil {
		return err
	}
	if !ok {
		c.todo = c.todo[:1]
		return nil
	}
	c.unlockNext = unlock
	err = o.view(ctx, func(tx *metadata.Tx) error { return nameFree(tx, name) })
	if errors.Is(err, errs.ErrExists) {
		c.todo = c.todo[:1]
		return nil
	}
	if err != nil {
		return err
	}
	return pointChainNext.Hit()
}

// advance takes note that the layer was recorded, and goes on to the next.
func (c *chain) advance(n metadata.Node) error {
	c.made = append(c.made, public(n, c.todo[0].Options.Parent))
	if err := pointLayerDone.Hit(); err != nil {
		return err
	}
	c.unlock()
	c.unlock, c.unlockNext = c.unlockNext, func() {}
	c.todo = c.todo[1:]
	if len(c.todo) > 0 {
		c.todo[0].Options.Parent = n.Name
	}
	return nil
}

// on returns the record of a layer to be made on a parent, which has no thin device yet.
func (l NewLayer) on(parent metadata.Node) metadata.Node {
	return metadata.Node{
		Name: l.Name, Kind: metadata.KindLayer, Parent: parent.Key, Size: max(l.Options.Size, parent.Size), FS: parent.FS,
		Created: time.Now().UTC(), Labels: l.Options.Labels, Attrs: maps.Clone(l.Options.Attrs), Foreign: parent.Foreign,
		Grown: parent.Grown || l.Options.Size > parent.Size,
	}
}
