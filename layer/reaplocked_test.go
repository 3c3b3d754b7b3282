package layer_test

import (
	"context"
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// As many thin devices as are worked on in one go, on which somebody else is at work, keep nothing else from being deleted; then nobody looks at them
// again before he has ended.
func TestReapPastLocked(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	const locked, free = 64, 3
	var ids []metadata.ThinID
	for i := range locked + free {
		name := fmt.Sprint("n", i)
		makeSnapshot(t, s, name, "base")
		ids = append(ids, node(t, e, name).ID)
		removeLater(t, s, name)
	}
	p, err := pool.Open(ctx, e.Dirs, e.Name, nil)
	must(t, err)
	defer p.Close()
	other, err := p.Hold(ctx)
	must(t, err)
	for _, id := range ids[:locked] {
		if ok, err := other.TryLockID(id); !ok || err != nil {
			t.Fatal(id, ok, err)
		}
	}
	must(t, s.WaitTombstones(ctx))
	r, err := s.Reap(ctx, nil)
	if err != nil || r.Deleted != free {
		t.Errorf("beside somebody who has %d: %+v, %v", locked, r, err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	mustFail(t, s.WaitTombstones(ended), context.Canceled)
	waited := make(chan error, 1)
	go func() { waited <- s.WaitTombstones(ctx) }()
	other.Exit()
	must(t, <-waited)
	if r, err = s.Reap(ctx, nil); err != nil || r != (layer.Reaped{Deleted: locked}) {
		t.Errorf("when he has ended: %+v, %v", r, err)
	}
}
