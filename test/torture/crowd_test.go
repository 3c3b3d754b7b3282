package torture_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// crowd is some actors in processes of their own on one pool.
type crowd struct {
	t      *testing.T
	e      *pooltest.Env
	seed   uint64
	orders []orders
}

func newCrowd(t *testing.T, seed uint64, fs string, actors, operations int) *crowd {
	base := baseOf(fs)
	c := &crowd{t: t, seed: seed, e: pooltest.New(t, pool.Spec{FS: fs, BaseSize: base, DataSize: 2 << 30})}
	dir := t.TempDir()
	for n := range actors {
		c.orders = append(c.orders, orders{Actor: n, Base: base, Operations: operations, Dir: dir})
	}
	return c
}

// round lets all actors work at once, and returns how many of them were killed.
func (c *crowd) round(n int, kill func() time.Duration) (killed int) {
	var children []*pooltest.Child
	for i := range c.orders {
		o := &c.orders[i]
		o.Seed = c.seed<<20 + uint64(n)
		o.Kill = kill()
		children = append(children, start(c.t, c.e, *o))
	}
	for i, child := range children {
		err, dead := child.Wait()
		if dead && c.orders[i].Kill > 0 {
			killed++
		} else if err != nil || dead {
			c.t.Errorf("round %d, actor %d: killed %v, %v", n, i, dead, err)
		}
	}
	ctx := pooltest.Context(c.t)
	if err := errors.Join(c.e.CheckLive(ctx), c.judge(ctx)); err != nil {
		c.t.Errorf("round %d: %v", n, err)
	}
	if c.t.Failed() {
		c.tell()
		c.t.FailNow()
	}
	return killed
}

// judge compares what there is with what the actors have done, and lets each go on from there.
func (c *crowd) judge(ctx context.Context) (err error) {
	if err := c.unmountVMs(ctx); err != nil {
		return err
	}
	s, err := layer.Open(ctx, c.e.Config())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	var casts []*cast
	for _, o := range c.orders {
		casts = append(casts, newCast(o.Actor, o.Base))
	}
	have, err := look(ctx, s, casts)
	if err != nil {
		return err
	}
	if err := sharedNodes(have, c.orders); err != nil {
		return err
	}
	err = unclaimed(have, casts)
	for i, o := range c.orders {
		err = errors.Join(err, o.judge(have.owned(casts[i])))
	}
	return err
}

// unmountVMs ends the machines whose process was killed.
func (c *crowd) unmountVMs(ctx context.Context) error {
	mounts, err := fsutil.Mounts()
	for _, m := range mounts {
		if strings.HasPrefix(m.Dir, c.orders[0].Dir+"/") {
			err = errors.Join(err, fsutil.Unmount(ctx, m.Dir, fsutil.UnmountOptions{}))
		}
	}
	return err
}

// judge compares the part of an actor, and makes it the state that it goes on from.
func (o orders) judge(have state) error {
	before, under, lines, err := o.follow()
	if err != nil {
		return err
	}
	switch {
	case under == nil:
		err = before.differences(have, false)
	case !under.allows(before, have):
		err = fmt.Errorf("killed in %s\n%w", under.text, before.differences(have, true))
	}
	if err != nil {
		return fmt.Errorf("actor %d after %d operations: %w", o.Actor, len(lines), err)
	}
	b, err := json.Marshal(have)
	if err != nil {
		return err
	}
	if err := os.Remove(o.ledgerFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return os.WriteFile(o.stateFile(), b, 0o600)
}

// tell shows what the actors did in the round that failed.
func (c *crowd) tell() {
	for _, o := range c.orders {
		_, _, lines, err := o.follow()
		c.t.Logf("actor %d, seed %d: %v\n\t%s", o.Actor, o.Seed, err, strings.Join(lines, "\n\t"))
	}
}

// end unmounts everything, so that the pool can be stopped and checked.
func (c *crowd) end() {
	ctx := pooltest.Context(c.t)
	s, err := layer.Open(ctx, c.e.Config())
	must(c.t, err)
	infos, err := s.List(ctx)
	must(c.t, err)
	for _, i := range infos {
		for _, dir := range i.Mountpoints {
			must(c.t, s.Unmount(ctx, dir))
		}
	}
	must(c.t, s.Close())
	must(c.t, c.e.Check(ctx))
}

func never() time.Duration { return 0 }

// TestKills kills processes at any instant of their work, several at once, and looks each time what they left.
// DMLAYER_TORTURE_KILLS says how many.
func TestKills(t *testing.T) {
	seed := seed(t)
	const actors = 4
	rnd := rand.New(rand.NewPCG(seed, 1<<33))
	c := newCrowd(t, seed, fsOf(seed), actors, 1000)
	killed, rounds := 0, 0
	for want := setting(t, "KILLS", 28); killed < want; rounds++ {
		killed += c.round(rounds, func() time.Duration {
			return time.Duration(1 + rnd.Int64N(int64(3*time.Second)))
		})
	}
	c.end()
	t.Logf("%d processes killed in %d rounds", killed, rounds)
}

func fsOf(seed uint64) string {
	if seed%4 == 2 {
		return "xfs"
	}
	return "ext4"
}

// TestModel lets eight processes work on one pool, each on nodes of its own and on some that are everybody's.
// Every result must be what a model says, and those on everybody's nodes must have an order in which they
// could have been one after the other. DMLAYER_TORTURE_OPERATIONS says how many each does.
func TestModel(t *testing.T) {
	seed := seed(t)
	operations := setting(t, "OPERATIONS", 25)
	const actors, rounds = 8, 2
	c := newCrowd(t, seed, fsOf(seed), actors, (operations+rounds-1)/rounds)
	for i := range c.orders {
		c.orders[i].Shared = true
	}
	for n := range rounds {
		c.round(n, never)
	}
	c.end()
	events, err := readEvents(c.orders)
	must(t, err)
	for name, all := range events {
		if err := linear(all); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	t.Logf("%d operations by %d processes", rounds*actors*c.orders[0].Operations, actors)
}
