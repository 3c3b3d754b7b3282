package layer_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// What each operation of a process that keeps its Store open may cost, whatever the number of nodes.
// docs/performance.md explains the figures.
var budgets = []struct {
	name string
	run  func(ctx context.Context, s *layer.Store) error
	want layer.Cost
	xfs  layer.Cost // where it is another
}{
	{name: "prepare", run: func(ctx context.Context, s *layer.Store) error {
		_, err := s.CreateSnapshot(ctx, "node", layer.SnapshotOptions{Parent: "base"})
		return err
	}, want: layer.Cost{Ioctls: 3, Messages: 1, Syncs: 2}},
	{name: "mount", run: func(ctx context.Context, s *layer.Store) error {
		_, err := s.Mount(ctx, "node", "", layer.MountOptions{})
		return err
	}, want: layer.Cost{Ioctls: 6}},
	{name: "commit mounted", run: func(ctx context.Context, s *layer.Store) error {
		_, err := s.Commit(ctx, "node", "live", layer.CommitOptions{})
		return err
	}, want: layer.Cost{Ioctls: 14, Messages: 1, Syncs: 2}},
	{name: "unmount", run: func(ctx context.Context, s *layer.Store) error {
		return s.Unmount(ctx, "node")
	}, want: layer.Cost{Ioctls: 2}},
	{name: "commit", run: func(ctx context.Context, s *layer.Store) error {
		_, err := s.Commit(ctx, "node", "still", layer.CommitOptions{})
		return err
	}, want: layer.Cost{Ioctls: 11, Messages: 1, Syncs: 2}},
	{name: "chain, first layer", run: func(ctx context.Context, s *layer.Store) error {
		return budgetChain.start(ctx, s, nil)
	}, want: layer.Cost{Ioctls: 12, Messages: 2, Syncs: 2}, xfs: layer.Cost{Ioctls: 17, Messages: 2, Syncs: 2}},
	{name: "chain, next layer", run: func(ctx context.Context, s *layer.Store) error {
		return budgetChain.next(ctx, s, nil)
	}, want: layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}, xfs: layer.Cost{Ioctls: 9, Messages: 1, Syncs: 2}},
	{name: "chain, last layer", run: func(ctx context.Context, s *layer.Store) error {
		return budgetChain.end(ctx, s, nil)
	}, want: layer.Cost{Ioctls: 1, Syncs: 2}},
	{name: "remove chain", run: func(ctx context.Context, s *layer.Store) error {
		return errors.Join(s.Remove(ctx, "c3"), s.Remove(ctx, "c2"), s.Remove(ctx, "c1"))
	}, want: layer.Cost{Ioctls: 12, Messages: 3, Syncs: 6}, xfs: layer.Cost{Ioctls: 24, Messages: 3, Syncs: 6}},
	{name: "measure", run: func(ctx context.Context, s *layer.Store) error {
		infos, err := s.List(ctx)
		if err == nil {
			err = s.Measure(ctx, infos)
		}
		return err
	}, want: layer.Cost{Ioctls: 8, Messages: 2}}, // one of them is List's
	{name: "remove", run: func(ctx context.Context, s *layer.Store) error {
		return s.Remove(ctx, "node")
	}, want: layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}, xfs: layer.Cost{Ioctls: 8, Messages: 1, Syncs: 2}},
	{name: "remove layer", run: func(ctx context.Context, s *layer.Store) error {
		return s.Remove(ctx, "live")
	}, want: layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}, xfs: layer.Cost{Ioctls: 8, Messages: 1, Syncs: 2}},
	{name: "remove layer", run: func(ctx context.Context, s *layer.Store) error {
		return s.Remove(ctx, "still")
	}, want: layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}, xfs: layer.Cost{Ioctls: 8, Messages: 1, Syncs: 2}},
}

var budgetChain = &slowChain{names: []string{"c1", "c2", "c3"}}

func TestBudgets(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs, DataSize: 4 << 30})
			s := e.Open(t)
			makeLayer(t, s, "base", "", map[string]string{"a": "1"})
			made := 0
			for _, nodes := range []int{10, 2000} {
				for ; made < nodes; made++ {
					makeSnapshot(t, s, fmt.Sprintf("other-%d", made), "base")
				}
				for i, cost := range measure(t, s) {
					b := budgets[i]
					t.Logf("%d nodes, %s: %+v", nodes, b.name, cost)
					want := b.want
					if fs == "xfs" && b.xfs != (layer.Cost{}) {
						want = b.xfs
					}
					if over(cost, want) {
						t.Errorf("%d nodes, %s: %+v, budget %+v", nodes, b.name, cost, want)
					}
				}
			}
		})
	}
}

// measure returns the cost of each operation: the least of three rounds, of which at most one reserves
// a window of thin ids.
func measure(t *testing.T, s *layer.Store) []layer.Cost {
	ctx := pooltest.Context(t)
	least := make([]layer.Cost, len(budgets))
	for round := range 3 {
		for i, b := range budgets {
			before := s.Cost()
			must(t, b.run(ctx, s))
			after := s.Cost()
			cost := layer.Cost{
				Ioctls: after.Ioctls - before.Ioctls, Messages: after.Messages - before.Messages,
				Syncs: after.Syncs - before.Syncs, Programs: after.Programs - before.Programs,
			}
			if round == 0 || over(least[i], cost) {
				least[i] = cost
			}
		}
	}
	return least
}

// over tells whether anything of a cost is above a budget.
func over(c, budget layer.Cost) bool {
	return c.Ioctls > budget.Ioctls || c.Messages > budget.Messages || c.Syncs > budget.Syncs || c.Programs > budget.Programs
}
