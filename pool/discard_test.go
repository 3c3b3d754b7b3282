package pool_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// What is discarded within a budget is gone, and the next one goes on where the last one ended.
func TestDiscardWithinBudget(t *testing.T) {
	r := newReading(t, pool.Spec{DataSize: 512 << 20, BaseSize: 256 << 20})
	s := r.Open(t)
	_, err := s.CreateSnapshot(r.ctx, "s", layer.SnapshotOptions{})
	must(t, err)
	m, err := s.Mount(r.ctx, "s", "", layer.MountOptions{})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(m.Dir, "f"), bytes.Repeat([]byte("dmlayer "), 150<<20/8), 0o600))
	must(t, s.Unmount(r.ctx, "s"))
	n, err := r.Node(r.ctx, "s")
	must(t, err)

	session, err := r.p.Enter(r.ctx)
	must(t, err)
	defer session.Exit()
	must(t, session.LockIDs(r.ctx, n.ID))
	budget := func(n int64) *int64 { return &n }
	for _, step := range []struct {
		budget *int64
		more   bool
		left   int64 // MiB at least
	}{
		{budget(0), true, 150}, {budget(1), true, 86}, {budget(-1), true, 86}, {budget(64 << 20), true, 22}, {budget(1 << 30), false, 0}, {nil, false, 0},
	} {
		more, err := session.Discard(r.ctx, n.ID, pool.DiscardOptions{Budget: step.budget})
		must(t, err)
		left := *state(t, r.Env).DataUsed >> 20
		if more != step.more || left < step.left || left > step.left+8 {
			t.Errorf("%d MiB left, more %t; want %+v", left, more, step)
		}
	}
	session.UnlockID(n.ID)
	must(t, s.Remove(r.ctx, "s"))
}
