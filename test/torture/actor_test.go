package torture_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// The base sizes of the pools.
const (
	baseSize    = 64 << 20
	baseSizeXFS = 320 << 20 // mkfs.xfs makes nothing below 300 MiB
)

func baseOf(fs string) int64 {
	if fs == "xfs" {
		return baseSizeXFS
	}
	return baseSize
}

// operation is something that an actor does, with what must come of it.
type operation struct {
	text string
	run  func(ctx context.Context, s *layer.Store) error
	want error // the class of the error that there must be; then nothing changes
	// states are what may be found where it was interrupted, beside the state before; the last one is there
	// when it is done.
	states []state
	// mixed operations have many steps, each of which brings a node or an image to its last state.
	mixed bool
}

// done returns the state after an operation.
func (o operation) done(before state) state {
	if o.want != nil || len(o.states) == 0 {
		return before
	}
	return o.states[len(o.states)-1]
}

// allows tells whether an interruption of the operation may have left this.
func (o operation) allows(before, have state) bool {
	if before.differences(have, true) == nil {
		return true
	}
	if o.want != nil {
		return false
	}
	for _, s := range o.states {
		if s.differences(have, true) == nil {
			return true
		}
	}
	return o.mixed && between(before, o.done(before), have)
}

// actor does random operations on nodes of its own.
type actor struct {
	*cast
	state state
	rnd   *rand.Rand
	dir   string // for archives
	solo  bool   // nobody else is there: prune takes only what this one knows of
}

func newActor(n int, base int64, seed uint64, dir string) *actor {
	return &actor{cast: newCast(n, base), state: emptyState(), rnd: rand.New(rand.NewPCG(seed, uint64(n))), dir: dir}
}

// next chooses an operation.
func (a *actor) next() operation {
	for {
		o, ok := a.choices()[a.rnd.IntN(len(a.choices()))]()
		if ok {
			return o
		}
	}
}

// choices are the operations, those that matter more several times. An operation that has nothing to work
// on is not ok.
func (a *actor) choices() []func() (operation, bool) {
	all := []func() (operation, bool){
		a.snapshot, a.snapshot, a.snapshot, a.fill, a.chain, a.write, a.write, a.write, a.write,
		a.commit, a.commit, a.move, a.reset, a.resize, a.rename, a.label, a.remove, a.remove, a.remove,
		a.mount, a.unmount, a.unmount, a.load, a.load, a.tag, a.untag, a.untag, a.rawWrite, a.rawMove,
		a.check, a.check, a.list, a.fsck, a.pruneImages,
	}
	if a.solo {
		all = append(all, a.prune)
	}
	return all
}

// do runs an operation and compares its result with what it must be.
func (a *actor) do(ctx context.Context, s *layer.Store, o operation) error {
	err := o.run(ctx, s)
	switch {
	case o.want == nil && err != nil:
		return fmt.Errorf("%s: %w", o.text, err)
	case o.want != nil && !errors.Is(err, o.want):
		return fmt.Errorf("%s: got %w, want %w", o.text, wrapped(err), o.want)
	}
	a.state = o.done(a.state)
	return nil
}

func wrapped(err error) error {
	if err == nil {
		return errors.New("no error")
	}
	return err
}

// refused is an operation that must fail and change nothing.
func refused(text string, want error, run func(context.Context, *layer.Store) error) (operation, bool) {
	return operation{text: text, run: run, want: want}, true
}

// changes is an operation that has one commit point.
func changes(text string, after state, run func(context.Context, *layer.Store) error) (operation, bool) {
	return operation{text: text, run: run, states: []state{after}}, true
}

// pick returns a name out of a few, of a node that may be there or not.
func (a *actor) pick(kind string, n int) string {
	return fmt.Sprintf("%s-%s%d", a.id, kind, a.rnd.IntN(n))
}

const (
	snapshots = 4
	layers    = 4
	disks     = 2
)

func (a *actor) aSnapshot() string { return a.pick("s", snapshots) }
func (a *actor) aLayer() string    { return a.pick("l", layers) }
func (a *actor) aDisk() string     { return a.pick("d", disks) }

// any returns one of the actor's names.
func (a *actor) any() string {
	switch a.rnd.IntN(4) {
	case 0:
		return a.aLayer()
	case 1:
		l := a.archives[a.rnd.IntN(2)].layers
		return l[a.rnd.IntN(len(l))]
	case 2:
		return a.aDisk()
	}
	return a.aSnapshot()
}

// aParent returns a node that there is, "" for none. The layers of others' images are there while an image
// of this actor's holds them.
func (a *actor) aParent() (string, node) {
	if _, ok := a.state.Refs[a.archives[2].ref]; ok && a.rnd.IntN(4) == 0 {
		name := a.archives[2].layers[1]
		return name, a.archives[2].nodes[name]
	}
	for range 3 {
		if name := a.any(); a.state.Nodes[name].Kind != "" {
			return name, a.state.Nodes[name]
		}
	}
	return "", node{Size: a.base}
}

// number returns a new content.
func (a *actor) number() uint64 { return a.rnd.Uint64() | 1<<62 }

// held tells whether an image of the actor holds a layer.
func (s state) held(c *cast, name string) bool {
	for _, k := range s.Refs {
		if _, ok := c.archives[k].nodes[name]; ok {
			return true
		}
	}
	return false
}

// busy is what the removal of a node must fail with, nil for nothing.
func (s state) busy(c *cast, name string) error {
	if s.Nodes[name].Mounted || len(s.children(name)) > 0 || s.held(c, name) {
		return errs.ErrBusy
	}
	return nil
}
