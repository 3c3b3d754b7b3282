package layer_test

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// While a layer is unpacked into a node, who has activated it is told how again, and what would have to wait is refused or ends with its context.
func TestWhileEdited(t *testing.T) {
	e := pooltest.New(t, pool.Spec{BaseSize: 64 << 20})
	s, ctx := e.Open(t), pooltest.Context(t)
	claim := layer.ClaimOptions{Claim: "x"}
	_, device, err := s.Prepare(ctx, "n", layer.SnapshotOptions{}, claim, nil)
	must(t, err)
	inside, leave, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	editing, cancel := context.WithCancel(ctx)
	go func() {
		done <- s.EditClaimed(editing, "n", func(_ context.Context, root string) error {
			close(inside)
			<-leave
			return os.WriteFile(filepath.Join(root, "file"), []byte("text"), 0o600)
		})
	}()
	<-inside

	again, err := s.Activate(ctx, "n", claim)
	if err != nil || again.Path != device.Path || again.ReadOnly || len(again.Options) != len(device.Options) {
		t.Errorf("activated again as %+v, %v; before %+v", again, err, device)
	}
	for _, co := range []layer.ClaimOptions{{Claim: "y"}, {Claim: "x", ReadOnly: true}, {Claim: "x", Check: func(*layer.DocTx) error { return nil }}} {
		_, err := s.Activate(ctx, "n", co)
		mustFail(t, err, layer.ErrBusy)
	}
	keep := func(*layer.DocTx) error { t.Error("documents were changed"); return nil }
	_, err = s.Drop(ctx, "n", "x", keep)
	mustFail(t, err, layer.ErrBusy)
	_, err = s.Commit(ctx, "n", "l", layer.CommitOptions{Move: true, Claim: "x", Documents: keep})
	mustFail(t, err, layer.ErrBusy)
	gone, end := context.WithCancel(ctx)
	waits := make(chan error, 2)
	go func() { _, err := s.Commit(gone, "n", "l", layer.CommitOptions{}); waits <- err }()
	go func() { waits <- s.Deactivate(gone, "n", "x") }()
	end()
	for range 2 {
		mustFail(t, <-waits, context.Canceled)
	}
	if held, err := s.Inspect(ctx, "n"); err != nil || len(held.Claims) != 1 {
		t.Errorf("claims %+v, %v", held.Claims, err)
	}

	// One that was cancelled is about to end: it is waited for.
	cancel()
	go func() { _, err := s.Drop(ctx, "n", "x", func(*layer.DocTx) error { return nil }); waits <- err }()
	close(leave)
	if err := <-done; err != nil {
		t.Logf("edited: %v", err)
	}
	must(t, <-waits)
	_, err = s.Get(ctx, "n")
	mustFail(t, err, layer.ErrNotFound)
}
