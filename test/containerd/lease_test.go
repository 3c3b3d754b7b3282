package containerd_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/diff"
	diffproxy "github.com/containerd/containerd/v2/core/diff/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/snapshots"
	snapshotsproxy "github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestCollectorAfterCompare lets containerd collect garbage between a comparison and the use of what came of it, as happens when containers are removed
// while others are committed: containerd does not tell a proxy differ the lease under which it was asked.
func TestCollectorAfterCompare(t *testing.T) {
	h := newHost(t, releases[1], pool.Spec{DataSize: 4 << 30})
	h.load(imageFile(t, "small.oci.tar"))
	conn, err := grpc.NewClient("unix:"+filepath.Join(h.dir, "c.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(t, err)
	defer conn.Close()
	ctx := namespaces.WithNamespace(pooltest.Context(t), "default")
	manager := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))
	lease := func(ctx context.Context) leases.Lease {
		l, err := manager.Create(ctx, leases.WithRandomID(), leases.WithExpiration(time.Hour))
		must(t, err)
		return l
	}
	mine := lease(ctx)
	ctx = leases.WithLease(ctx, mine.ID)
	sn := snapshotsproxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "dmlayer")
	top := topOf(ctx, t, sn)
	lower, err := sn.View(ctx, "lower", top)
	must(t, err)
	upper, err := sn.Prepare(ctx, "upper", top)
	must(t, err)
	desc, err := diffproxy.NewDiffApplier(diffapi.NewDiffClient(conn)).(diff.Comparer).Compare(ctx, lower, upper)
	must(t, err)

	must(t, manager.Delete(ctx, lease(ctx), leases.SynchronousDelete))
	if _, err := contentproxy.NewContentStore(contentapi.NewContentClient(conn)).Info(ctx, desc.Digest); err != nil {
		t.Errorf("the layer that was made, after the collector has run: %v", err)
	}
	must(t, manager.Delete(ctx, mine, leases.SynchronousDelete))
}

// topOf returns the snapshot of an image that no other has as its parent.
func topOf(ctx context.Context, t *testing.T, sn snapshots.Snapshotter) string {
	t.Helper()
	tops := map[string]bool{}
	var parents []string
	must(t, sn.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		tops[info.Name] = true
		parents = append(parents, info.Parent)
		return nil
	}))
	for _, p := range parents {
		delete(tops, p)
	}
	for name := range tops {
		return name
	}
	t.Fatal("no snapshots")
	return ""
}
