package layer_test

import (
	"context"
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
}{
	{"prepare", func(ctx context.Context, s *layer.Store) error {
		_, err := s.CreateSnapshot(ctx, "node", layer.SnapshotOptions{Parent: "base"})
		return err
	}, layer.Cost{Ioctls: 3, Messages: 1, Syncs: 2}},
	{"mount", func(ctx context.Context, s *layer.Store) error {
		_, err := s.Mount(ctx, "node", "", layer.MountOptions{})
		return err
	}, layer.Cost{Ioctls: 6}},
	{"commit mounted", func(ctx context.Context, s *layer.Store) error {
		_, err := s.Commit(ctx, "node", "live", layer.CommitOptions{})
		return err
	}, layer.Cost{Ioctls: 14, Messages: 1, Syncs: 2}},
	{"unmount", func(ctx context.Context, s *layer.Store) error {
		return s.Unmount(ctx, "node")
	}, layer.Cost{Ioctls: 2}},
	{"commit", func(ctx context.Context, s *layer.Store) error {
		_, err := s.Commit(ctx, "node", "still", layer.CommitOptions{})
		return err
	}, layer.Cost{Ioctls: 11, Messages: 1, Syncs: 2}},
	{"remove", func(ctx context.Context, s *layer.Store) error {
		return s.Remove(ctx, "node")
	}, layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}},
	{"remove layer", func(ctx context.Context, s *layer.Store) error {
		return s.Remove(ctx, "live")
	}, layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}},
	{"remove layer", func(ctx context.Context, s *layer.Store) error {
		return s.Remove(ctx, "still")
	}, layer.Cost{Ioctls: 4, Messages: 1, Syncs: 2}},
}

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
					if over(cost, b.want) {
						t.Errorf("%d nodes, %s: %+v, budget %+v", nodes, b.name, cost, b.want)
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
