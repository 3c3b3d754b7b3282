package containerd

import (
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/content/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// Content is the content store of a containerd. It is safe for concurrent use.
type Content struct {
	content.Store
	conn *grpc.ClientConn
}

// DialContent returns the content store of the containerd with that socket, which is connected to when it is asked for something, and need not be there before.
func DialContent(socket string) (*Content, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("containerd at %s: %w", socket, err)
	}
	return &Content{proxy.NewContentStore(conn), conn}, nil
}

// Close ends the connection.
func (c *Content) Close() error { return c.conn.Close() }
