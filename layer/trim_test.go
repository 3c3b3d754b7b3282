package layer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// trimmingOperations is a part of a sweep, also where there is nothing to be had.
func trimmingOperations() []operation {
	return []operation{{
		name: "trim free", prepare: nothing,
		run: func(ctx context.Context, s *layer.Store, _ string) error {
			r, err := s.TrimFree(ctx, layer.TrimFreeOptions{Enough: -1, Most: 2 << 20})
			if err == nil && r.Swept != 2<<20 {
				err = fmt.Errorf("%+v", r)
			}
			return err
		},
		done: func(context.Context, *world) (bool, error) { return true, nil },
	}}
}

// churn makes and removes nodes whose own blocks are too few to be discarded.
func churn(t testing.TB, s *layer.Store, n int) {
	t.Helper()
	for i := range n {
		name := fmt.Sprint("churn-", i)
		makeSnapshot(t, s, name, "base")
		dir := mount(t, s, name)
		must(t, os.WriteFile(filepath.Join(dir, "f"), make([]byte, 500<<10), 0o600))
		unmount(t, s, name)
		must(t, s.Remove(pooltest.Context(t), name))
	}
}

// What removed nodes have left on the host comes back, beside somebody who writes, whose data stays.
func TestTrimFree(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 256 << 20})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "kept", "base")
	kept := mount(t, s, "kept")
	writeMiB(t, kept, "f", 8)
	trimmed := func() layer.FreeTrim {
		t.Helper()
		r, err := s.TrimFree(ctx, layer.TrimFreeOptions{})
		must(t, err)
		if r.Before == nil || r.After == nil || *r.After > 0 || r.Kept || r.Full {
			t.Fatalf("%+v: before %v, after %v", r, r.Before, r.After)
		}
		return r
	}
	trimmed()
	before, used := onHost(t, e.Data()), dataUsed(t, e)
	churn(t, s, 12)
	churned := onHost(t, e.Data())
	if churned < before+4<<20 {
		t.Fatalf("%d on the host, %d after nodes came and went: there is nothing to test", before, churned)
	}
	written := make(chan error)
	go func() {
		var err error
		for i := range 20 {
			err = errors.Join(err, os.WriteFile(filepath.Join(kept, fmt.Sprint(i)), []byte(fmt.Sprint("number ", i)), 0o600))
		}
		written <- err
	}()
	var done, total int64
	r, err := s.TrimFree(ctx, layer.TrimFreeOptions{Progress: func(d, t int64) { done, total = d, t }})
	must(t, err)
	must(t, <-written)
	t.Logf("%d on the host, %d after nodes came and went, %d after a trim: %+v", before, churned, onHost(t, e.Data()), r)
	if r.Swept == 0 || done == 0 || done > total || *r.Before < 4<<20 {
		t.Errorf("%+v, before %d, progress %d of %d", r, *r.Before, done, total)
	}
	trimmed()
	if now := onHost(t, e.Data()); now > before+2<<20 {
		t.Errorf("%d on the host, then %d", before, now)
	}
	if now := dataUsed(t, e); now > used+2<<20 {
		t.Errorf("%d used, then %d", used, now)
	}
	for i := range 20 {
		text, err := os.ReadFile(filepath.Join(kept, fmt.Sprint(i)))
		must(t, err)
		if string(text) != fmt.Sprint("number ", i) {
			t.Errorf("file %d has %q", i, text)
		}
	}
	unmount(t, s, "kept")
}

// An interruption leaves nothing, and what it has done stays done.
func TestTrimFreeInterrupted(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 256 << 20})
	s, used := e.Open(t), dataUsed(t, e)
	ctx, cancel := context.WithCancel(pooltest.Context(t))
	r, err := s.TrimFree(ctx, layer.TrimFreeOptions{Enough: -1, Progress: func(done, _ int64) {
		if done > 0 {
			cancel()
		}
	}})
	mustFail(t, err, context.Canceled)
	if r.Swept == 0 || dataUsed(t, e) > used {
		t.Errorf("%+v, %d used, then %d", r, used, dataUsed(t, e))
	}
}

// A pool that was made to pass nothing down keeps what it has, unless it is asked.
func TestTrimFreeAsked(t *testing.T) {
	for _, mode := range []string{"nopassdown", "ignore"} {
		t.Run(mode, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{DataSize: 256 << 20, Discard: mode})
			s, ctx := e.Open(t), pooltest.Context(t)
			makeLayer(t, s, "base", "", baseFiles)
			before := onHost(t, e.Data())
			makeSnapshot(t, s, "large", "base")
			writeMiB(t, mount(t, s, "large"), "f", 8)
			unmount(t, s, "large")
			must(t, s.Remove(ctx, "large"))
			r, err := s.TrimFree(ctx, layer.TrimFreeOptions{})
			must(t, err)
			if !r.Kept || r.Swept > 0 || onHost(t, e.Data()) < before+8<<20 {
				t.Errorf("%+v, %d on the host, then %d", r, before, onHost(t, e.Data()))
			}
			r, err = s.TrimFree(ctx, layer.TrimFreeOptions{Discard: true})
			must(t, err)
			if r.Kept || r.Swept == 0 || *r.After > 0 || onHost(t, e.Data()) > before+1<<20 {
				t.Errorf("%+v, %d on the host, then %d", r, before, onHost(t, e.Data()))
			}
		})
	}
}

// All that is mounted for writing is trimmed, and nothing else.
func TestTrimMounted(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	mount(t, s, "base")
	for _, name := range []string{"a", "b", "idle", "looked"} {
		makeSnapshot(t, s, name, "base")
	}
	_, err := s.Mount(ctx, "looked", "", layer.MountOptions{ReadOnly: true})
	must(t, err)
	used := dataUsed(t, e)
	for _, name := range []string{"a", "b"} {
		dir := mount(t, s, name)
		writeMiB(t, dir, "f", 4)
		must(t, os.Remove(filepath.Join(dir, "f")))
	}
	given := map[string]uint64{}
	must(t, s.TrimMounted(ctx, func(name string, n uint64) { given[name] = n }))
	if len(given) != 2 || given["a"] == 0 || given["b"] == 0 {
		t.Errorf("trimmed %v", given)
	}
	if now := dataUsed(t, e); now > used+2<<20 {
		t.Errorf("%d used, then %d", used, now)
	}
	for _, name := range []string{"a", "b", "base", "looked"} {
		unmount(t, s, name)
	}
}
