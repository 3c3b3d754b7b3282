package snapshotter_test

import (
	"context"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// While the differ unpacks a layer into a snapshot, its mounts are told, and what would have to wait for the end of that is refused: containerd's garbage collector, which
// keeps all others out, leaves the snapshot for later. Who has gone waits for nothing.
func TestWhileApplied(t *testing.T) {
	_, store, s := open(t, pool.Spec{BaseSize: 64 << 20})
	client, ctx := dialed(t, store), pooltest.Context(t)
	// The differ has the snapshotter's store, so that it must be one of the same process; the client goes through the socket.
	m, err := client.Prepare(ctx, "web", "")
	must(t, err)
	node := filepath.Base(m[0].Source)
	inside, leave, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		done <- store.EditClaimed(ctx, node, func(context.Context, string) error {
			close(inside)
			<-leave
			return nil
		})
	}()
	<-inside
	for _, s := range []snapshots.Snapshotter{client, s} {
		again, err := s.Mounts(ctx, "web")
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("mounts %+v, %v; before %+v", again, err, m)
		}
		mustBe(t, s.Remove(ctx, "web"), errdefs.ErrFailedPrecondition)
		mustBe(t, s.Commit(ctx, "layer", "web"), errdefs.ErrFailedPrecondition)
		if _, err := s.Stat(ctx, "web"); err != nil {
			t.Error(err)
		}
	}
	gone, end := context.WithCancel(ctx)
	waits := make(chan error, 1)
	go func() { waits <- store.EditClaimed(gone, node, func(context.Context, string) error { return nil }) }()
	end()
	mustBe(t, <-waits, context.Canceled)
	close(leave)
	must(t, <-done)
	must(t, client.Commit(ctx, "layer", "web"))
	if _, err := store.Get(ctx, node); err == nil {
		t.Error("the active snapshot's node is there still")
	} else {
		mustBe(t, err, layer.ErrNotFound)
	}
	must(t, client.Remove(ctx, "layer"))
}
