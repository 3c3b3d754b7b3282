package containerd

import (
	"fmt"

	contentapi "github.com/containerd/containerd/api/services/content/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/content"
	contentproxy "github.com/containerd/containerd/v2/core/content/proxy"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Content is the content store of a containerd, and the leases that keep its garbage collector from what is new there. It is safe for concurrent use.
type Content struct {
	content.Store
	Leases leases.Manager
	conn   *grpc.ClientConn
}

// DialContent returns the content store of the containerd with that socket, which is connected to when it is asked for something, and need not be there before.
func DialContent(socket string) (*Content, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", socket, err)
	}
	return &Content{
		Store:  contentproxy.NewContentStore(contentapi.NewContentClient(conn)),
		Leases: leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn)),
		conn:   conn,
	}, nil
}

// Close ends the connection.
func (c *Content) Close() error { return c.conn.Close() }
