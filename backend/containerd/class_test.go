package containerd_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dmlayer/dmlayer/backend/containerd"
)

// refusing refuses to list anything.
type refusing struct{ snapshots.Snapshotter }

func (refusing) Walk(context.Context, snapshots.WalkFunc, ...string) error {
	return fmt.Errorf("the records are damaged: %w", errdefs.ErrDataLoss)
}

// TestClassOfAList has the error of a list come to the client as what it is.
func TestClassOfAList(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- containerd.New(l, refusing{}, nil).Serve(ctx) }()
	conn, err := grpc.NewClient("unix:"+l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	sn := proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "dmlayer")
	err = sn.Walk(ctx, func(context.Context, snapshots.Info) error { return nil })
	if !errdefs.IsDataLoss(err) {
		t.Errorf("listed: %v", err)
	}
	must(t, conn.Close())
	cancel()
	must(t, <-ended)
}
