package snapshotter_test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestBadInput asks for what cannot be, and finds everything as before.
func TestBadInput(t *testing.T) {
	e, store, s := open(t, pool.Spec{})
	client := dialed(t, store)
	ctx := pooltest.Context(t)
	committed(t, client, "base", "", nil)
	for _, key := range []string{"../../../etc/passwd", "a/b/c", " ", "-rf", "sha256:x y", "\x01\x7f\n", "ключ", strings.Repeat("k", 4096), "%s%n", `"quoted\"`} {
		m, err := client.Prepare(ctx, key, "base", snapshots.WithLabels(map[string]string{"odd/" + key: key}))
		must(t, err)
		if strings.Contains(m[0].Source, "..") || filepath.Dir(m[0].Source) != filepath.Join(e.Dirs.Run, "dev", e.Name) {
			t.Errorf("%q is mounted from %s", key, m[0].Source)
		}
		i, err := client.Stat(ctx, key)
		if err != nil || i.Name != key || i.Labels["odd/"+key] != key {
			t.Errorf("%q: %+v, %v", key, i, err)
		}
		must(t, client.Remove(ctx, key))
	}
	for _, key := range []string{"", "nul\x00", strings.Repeat("k", 4097)} {
		_, err := client.Prepare(ctx, key, "base")
		mustBe(t, err, errdefs.ErrInvalidArgument)
		_, err = client.View(ctx, key, "base")
		mustBe(t, err, errdefs.ErrInvalidArgument)
		mustBe(t, client.Commit(ctx, key, "base"), errdefs.ErrInvalidArgument)
		mustBe(t, client.Remove(ctx, key), errdefs.ErrInvalidArgument)
		_, err = client.Stat(ctx, key)
		mustBe(t, err, errdefs.ErrInvalidArgument)
	}
	_, err := client.Prepare(ctx, "huge", "base", snapshots.WithLabels(map[string]string{"l": strings.Repeat("v", 1<<20)}))
	mustBe(t, err, errdefs.ErrInvalidArgument)
	_, err = s.Prepare(ctx, "text", "base", snapshots.WithLabels(map[string]string{"l": "\xff"}))
	mustBe(t, err, errdefs.ErrInvalidArgument)

	_, err = client.Prepare(ctx, "on nothing", "nobody")
	mustBe(t, err, errdefs.ErrNotFound)
	_, err = client.Prepare(ctx, "base", "")
	mustBe(t, err, errdefs.ErrAlreadyExists)
	m, err := client.Prepare(ctx, "active", "base")
	must(t, err)
	_, err = client.Prepare(ctx, "on active", "active")
	mustBe(t, err, errdefs.ErrInvalidArgument)
	_, err = client.View(ctx, "on active", "active")
	mustBe(t, err, errdefs.ErrInvalidArgument)
	mustBe(t, client.Commit(ctx, "base", "active"), errdefs.ErrAlreadyExists)
	mustBe(t, client.Commit(ctx, "c", "active", snapshots.WithParent("nobody")), errdefs.ErrInvalidArgument)
	mustBe(t, client.Commit(ctx, "c", "nobody"), errdefs.ErrNotFound)
	mustBe(t, client.Commit(ctx, "c", "base"), errdefs.ErrFailedPrecondition)
	mustBe(t, client.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
	_, err = client.Mounts(ctx, "base")
	mustBe(t, err, errdefs.ErrFailedPrecondition)
	_, err = client.Update(ctx, snapshots.Info{Name: "active", Kind: snapshots.KindView}, "kind")
	mustBe(t, err, errdefs.ErrInvalidArgument)
	if err := client.Walk(ctx, func(context.Context, snapshots.Info) error { return nil }, "=="); err == nil {
		t.Error("a filter that is none was taken")
	}
	// After all that it works, and is what it was.
	again, err := client.Mounts(ctx, "active")
	if err != nil || again[0].Source != m[0].Source {
		t.Errorf("%+v, %v; before %+v", again, err, m)
	}
	if nodes, _ := count(t, store); nodes != 2 {
		t.Errorf("%d nodes", nodes)
	}
}

// TestCancelledAnywhere cancels each request at each point that it reaches. Whatever was done is whole, the request can be made again or has
// been done, and nothing is left over.
func TestCancelledAnywhere(t *testing.T) {
	e, store, s := open(t, pool.Spec{})
	committed(t, s, "base", "", nil)
	type request struct {
		name   string
		before func(ctx context.Context, key string) error
		run    func(ctx context.Context, key string) error
	}
	prepare := func(ctx context.Context, key string) error { _, err := s.Prepare(ctx, key, "base"); return err }
	view := func(ctx context.Context, key string) error { _, err := s.View(ctx, key, "base"); return err }
	for _, r := range []request{
		{"prepare", nil, prepare},
		{"view", nil, view},
		{"commit", prepare, func(ctx context.Context, key string) error { return s.Commit(ctx, key+"-c", key) }},
		{"remove", prepare, s.Remove},
		{"remove view", view, s.Remove},
	} {
		for hit := 1; ; hit++ {
			ctx := pooltest.Context(t)
			key := fmt.Sprintf("%s-%d", r.name, hit)
			if r.before != nil {
				must(t, r.before(ctx, key))
			}
			cancelled, cancel := context.WithCancel(ctx)
			seen := 0
			fault.Set(func(string) error {
				if seen++; seen == hit {
					cancel()
				}
				return nil
			})
			err := r.run(cancelled, key)
			fault.Set(nil)
			cancel()
			if err != nil {
				mustBe(t, err, context.Canceled)
				if err := r.run(ctx, key); err != nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsNotFound(err) {
					t.Errorf("%s, again after it was cancelled at point %d: %v", r.name, hit, err)
				}
			}
			must(t, e.CheckLive(ctx))
			if seen < hit {
				break
			}
		}
		for _, name := range walk(t, s) {
			if name != "base" {
				must(t, s.Remove(pooltest.Context(t), name))
			}
		}
		if nodes, active := count(t, store); nodes != 1 || active != 0 {
			t.Errorf("%s: %d nodes, %d active are left", r.name, nodes, active)
		}
	}
}
