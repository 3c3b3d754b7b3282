package snapshotter_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestHammer has clients make requests of all kinds for a few keys, many of them cancelled on their way: each ends as containerd knows it, and nothing is left over.
func TestHammer(t *testing.T) {
	e, store, s := open(t, pool.Spec{})
	client := dialed(t, store)
	committed(t, client, "base", "", nil)
	const clients, requests = 6, 60
	var all sync.WaitGroup
	for i := range clients {
		all.Go(func() {
			r := rand.New(rand.NewPCG(1, uint64(i)))
			for range requests {
				name, err := anyRequest(pooltest.Context(t), r, client)
				if err != nil && !expected(err) {
					t.Errorf("%s: %v", name, err)
				}
			}
		})
	}
	all.Wait()
	must(t, e.CheckLive(pooltest.Context(t)))
	ctx := pooltest.Context(t)
	for names := walk(t, s); len(names) > 0; names = walk(t, s) {
		for _, name := range names {
			if err := client.Remove(ctx, name); err != nil && !errdefs.IsFailedPrecondition(err) { // of one that has children
				t.Fatal(err)
			}
		}
	}
	must(t, s.Cleanup(ctx))
	if nodes, active := count(t, store); nodes != 0 || active != 0 {
		t.Errorf("%d nodes, %d active are left", nodes, active)
	}
}

// anyRequest makes one, of which one in six is cancelled, and tells which.
func anyRequest(ctx context.Context, r *rand.Rand, s snapshots.Snapshotter) (name string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key, other := fmt.Sprint("key-", r.IntN(6)), fmt.Sprint("key-", r.IntN(6))
	parent := "base"
	if r.IntN(3) == 0 {
		parent = other + "-layer"
	}
	layer := key + "-layer"
	labels := snapshots.WithLabels(map[string]string{"of": strings.Repeat(key, r.IntN(100))})
	kinds := []struct {
		name string
		run  func() error
	}{
		{"prepare", func() error { _, err := s.Prepare(ctx, key, parent, labels); return err }},
		{"view", func() error { _, err := s.View(ctx, key, parent, labels); return err }},
		{"commit", func() error { return s.Commit(ctx, layer, key, labels) }},
		{"remove", func() error { return s.Remove(ctx, key) }},
		{"remove a layer", func() error { return s.Remove(ctx, layer) }},
		{"mounts", func() error { _, err := s.Mounts(ctx, key); return err }},
		{"usage", func() error { _, err := s.Usage(ctx, key); return err }},
		{"stat", func() error { _, err := s.Stat(ctx, layer); return err }},
		{"update", func() error {
			_, err := s.Update(ctx, snapshots.Info{Name: key, Labels: map[string]string{"u": other}})
			return err
		}},
		{"list", func() error { return s.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }) }},
		{"clean up", func() error { return s.(snapshots.Cleaner).Cleanup(ctx) }},
	}
	kind := kinds[r.IntN(len(kinds))]
	if r.IntN(6) > 0 {
		return kind.name, kind.run()
	}
	// It is cancelled wherever it has come to when another one has been answered.
	done := make(chan error, 1)
	go func() { done <- kind.run() }()
	_, _ = s.Stat(ctx, other)
	cancel()
	return kind.name, <-done
}

// expected tells whether an error is one that containerd knows what to do about.
func expected(err error) bool {
	for _, class := range []error{errdefs.ErrNotFound, errdefs.ErrAlreadyExists, errdefs.ErrFailedPrecondition, errdefs.ErrInvalidArgument, context.Canceled} {
		if errors.Is(err, class) {
			return true
		}
	}
	return errdefs.IsCanceled(err)
}

// TestLargeLabels lists as many snapshots as go into one message, each with the largest keys and labels that are taken.
func TestLargeLabels(t *testing.T) {
	_, store, _ := open(t, pool.Spec{})
	client := dialed(t, store)
	long := strings.Repeat("k", 4092)
	ctx := pooltest.Context(t)
	_, err := client.Prepare(ctx, "active", "")
	must(t, err)
	must(t, client.Commit(ctx, long, "active"))
	labels := snapshots.WithLabels(map[string]string{"l": strings.Repeat("v", 32<<10-1)})
	for i := range 100 {
		_, err := client.View(ctx, fmt.Sprintf("%s%04d", long, i), long, labels)
		must(t, err)
	}
	if names := walk(t, client); len(names) != 101 {
		t.Errorf("%d are listed", len(names))
	}
	_, err = client.View(ctx, "more", long, snapshots.WithLabels(map[string]string{"l": strings.Repeat("v", 32<<10)}))
	mustBe(t, err, errdefs.ErrInvalidArgument)
}
