package layer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// makeMany makes snapshots of a layer as CreateSnapshot does, but records many in one transaction.
func makeMany(ctx context.Context, e *pooltest.Env, parent string, from, to int) (err error) {
	origin, err := e.Node(ctx, parent)
	if err != nil {
		return err
	}
	p, err := pool.Open(ctx, e.Dirs, e.Name, nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.Close()) }()
	const atOnce = 500
	for ; from < to; from += atOnce {
		if err := makeSome(ctx, p, origin, from, min(from+atOnce, to)); err != nil {
			return err
		}
	}
	return nil
}

func makeSome(ctx context.Context, p *pool.Pool, origin metadata.Node, from, to int) error {
	s, err := p.Enter(ctx)
	if err != nil {
		return err
	}
	defer s.Exit()
	nodes := make([]metadata.Node, 0, to-from)
	for i := from; i < to; i++ {
		id, err := s.AllocateID(ctx)
		if err != nil {
			return err
		}
		if err := s.Thin.CreateSnap(thinpool.ID(id), thinpool.ID(origin.ID)); err != nil {
			return err
		}
		nodes = append(nodes, metadata.Node{
			ID: id, Name: fmt.Sprintf("other-%d", i), Kind: metadata.KindSnapshot, Parent: origin.Key,
			Size: origin.Size, FS: origin.FS, Created: time.Now().UTC(),
		})
	}
	return s.Records.Update(ctx, func(tx *metadata.Tx) error {
		for _, n := range nodes {
			if _, err := tx.AddNode(n); err != nil {
				return err
			}
		}
		return nil
	})
}

// manyNodes is how many nodes a large pool has. DMLAYER_TORTURE_NODES makes it larger.
func manyNodes(t testing.TB) int {
	text := os.Getenv("DMLAYER_TORTURE_NODES")
	if text == "" {
		return 10_000
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("DMLAYER_TORTURE_NODES: %v", err)
	}
	return n
}

// TestScale makes a large pool, in which operations, opening, recovery and listing cost as many calls as in a
// small one. How long they take is only told.
func TestScale(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 4 << 30, MetadataSize: 128 << 20})
	w := &world{e: e, s: e.Open(t), p: "x-"}
	makeLayer(t, w.s, "base", "", baseFiles)
	makeLayer(t, w.s, "top", "base", map[string]string{"b": "2"})
	must(t, w.s.UpdateDocuments(pooltest.Context(t), func(tx *layer.DocTx) error {
		return tx.Put(layer.Document{Kind: "test", Key: "hold", Layers: []string{"base", "top"}, Data: []byte("{}")})
	}))
	few, many := 10, manyNodes(t)
	must(t, makeMany(pooltest.Context(t), e, "base", 0, few))
	small := w.opening(t)
	began := time.Now()
	must(t, makeMany(pooltest.Context(t), e, "base", few, many))
	t.Logf("%d nodes made in %v", many-few, time.Since(began))
	large := w.opening(t)
	for what, cost := range large {
		if over(cost, small[what]) {
			t.Errorf("%s costs %+v with %d nodes, %+v with %d", what, cost, many, small[what], few)
		}
	}
	for i, cost := range measure(t, w.s) {
		t.Logf("%s: %+v", budgets[i].name, cost)
		if over(cost, budgets[i].want) {
			t.Errorf("%d nodes, %s: %+v, budget %+v", many, budgets[i].name, cost, budgets[i].want)
		}
	}
}

// opening returns what it costs to open the pool, to open it after a crash, and to list it.
func (w *world) opening(t *testing.T) map[string]layer.Cost {
	ctx := pooltest.Context(t)
	w.cleanUp(t) // settles what is gone: crashes before are not to be counted again
	costs := map[string]layer.Cost{}
	open := func(what string) {
		began := time.Now()
		s, err := layer.Open(ctx, w.e.Config())
		must(t, err)
		t.Logf("%s: %v", what, time.Since(began))
		costs[what] = s.Cost()
		began = time.Now()
		infos, err := s.List(ctx)
		must(t, err)
		t.Logf("list of %d: %v", len(infos), time.Since(began))
		costs[what+" and list"] = s.Cost()
		must(t, s.Close())
	}
	open("open")
	for _, op := range nodeOperations("ext4") {
		if op.name != "snapshot of layer" && op.name != "remove" {
			continue
		}
		op.prepare(t, w)
		j := w.job("ext4", op)
		j.Point = map[string]string{"remove": "layer.remove.tombstone"}[op.name]
		if j.Point == "" {
			j.Point = "layer.create.thin-created"
		}
		pooltest.RunKilled(t, j)
		open("open after a crash in " + op.name)
	}
	must(t, pool.Stop(ctx, w.e.Dirs, w.e.Name))
	open("start")
	return costs
}
