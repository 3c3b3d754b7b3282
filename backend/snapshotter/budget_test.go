package snapshotter_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestBudgets counts what each request costs, whatever the number of snapshots.
func TestBudgets(t *testing.T) {
	_, store, s := open(t, pool.Spec{DataSize: 4 << 30})
	committed(t, s, "base", "", nil)
	budgets := []struct {
		name string
		run  func(ctx context.Context) error
		want layer.Cost
	}{
		{"prepare", func(ctx context.Context) error { _, err := s.Prepare(ctx, "a", "base"); return err }, layer.Cost{Ioctls: 7, Messages: 1, Syncs: 2}},
		{"mounts", func(ctx context.Context) error { _, err := s.Mounts(ctx, "a"); return err }, layer.Cost{Ioctls: 5}},
		{"stat", func(ctx context.Context) error { _, err := s.Stat(ctx, "a"); return err }, layer.Cost{}},
		{"commit", func(ctx context.Context) error { return s.Commit(ctx, "c", "a") }, layer.Cost{Ioctls: 7, Syncs: 2}},
		{"view", func(ctx context.Context) error { _, err := s.View(ctx, "v", "c"); return err }, layer.Cost{Ioctls: 6, Syncs: 2}},
		{"remove view", func(ctx context.Context) error { return s.Remove(ctx, "v") }, layer.Cost{Ioctls: 5, Syncs: 2}},
		{"remove committed", func(ctx context.Context) error { return s.Remove(ctx, "c") }, layer.Cost{Ioctls: 5, Messages: 1, Syncs: 2}},
		{"prepare", func(ctx context.Context) error { _, err := s.Prepare(ctx, "a", "base"); return err }, layer.Cost{Ioctls: 7, Messages: 1, Syncs: 2}},
		{"remove active", func(ctx context.Context) error { return s.Remove(ctx, "a") }, layer.Cost{Ioctls: 6, Messages: 1, Syncs: 2}},
	}
	const active = 100
	for i := range 10 {
		_, err := s.Prepare(pooltest.Context(t), fmt.Sprintf("other-%d", i), "base")
		must(t, err)
	}
	for _, number := range []int{10, 2000} {
		ctx := pooltest.Context(t)
		if number > active {
			for i := 10; i < active; i++ {
				_, err := s.Prepare(ctx, fmt.Sprintf("other-%d", i), "base")
				must(t, err)
			}
			var views []string
			for i := active; i < number; i++ {
				views = append(views, fmt.Sprintf("other-%d", i))
			}
			must(t, s.Views(ctx, "base", views, true))
			defer func() { must(t, s.Views(pooltest.Context(t), "base", views, false)) }()
		}
		least := make([]layer.Cost, len(budgets))
		for round := range 3 { // of which at most one reserves a window of thin ids
			for i, b := range budgets {
				before := store.Cost()
				must(t, b.run(ctx))
				after := store.Cost()
				c := layer.Cost{
					Ioctls: after.Ioctls - before.Ioctls, Messages: after.Messages - before.Messages,
					Syncs: after.Syncs - before.Syncs, Programs: after.Programs - before.Programs,
				}
				if round == 0 || over(least[i], c) {
					least[i] = c
				}
			}
		}
		for i, b := range budgets {
			t.Logf("%d snapshots, %s: %+v", number, b.name, least[i])
			if over(least[i], b.want) {
				t.Errorf("%d snapshots, %s: %+v, budget %+v", number, b.name, least[i], b.want)
			}
		}
	}
	ctx := pooltest.Context(t)
	_, err := s.Usage(ctx, "other-0")
	must(t, err)
	before := store.Cost()
	for i := range 2000 {
		_, err := s.Usage(ctx, fmt.Sprintf("other-%d", i))
		must(t, err)
	}
	if c := store.Cost(); c.Messages != before.Messages || c.Ioctls-before.Ioctls > 2000 {
		t.Errorf("usage of 2,000 snapshots: %d ioctls, %d messages", c.Ioctls-before.Ioctls, c.Messages-before.Messages)
	}
}

// over tells whether anything of a cost is above a budget.
func over(c, budget layer.Cost) bool {
	return c.Ioctls > budget.Ioctls || c.Messages > budget.Messages || c.Syncs > budget.Syncs || c.Programs > budget.Programs
}
