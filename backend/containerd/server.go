// Package containerd serves containerd over a socket: its snapshots service and its diff service, for the plugins of its configuration that are
// called proxy plugins.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	diffapi "github.com/containerd/containerd/api/services/diff/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/contrib/diffservice"
	"github.com/containerd/containerd/v2/contrib/snapshotservice"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
)

// maxMessage bounds a request, which the sender's memory does not: labels, mounts and what a filter asks for.
const maxMessage = 4 << 20

// window is how many bytes a client may send ahead. That it is fixed keeps the server from measuring the way there and back with each request, which over a
// socket of this machine costs more than most requests.
const window = 1 << 20

// maxAtWork bounds the requests of a connection that are at work; the client keeps back what is above. Each that waits for a lock has a thread.
const maxAtWork = 512

// Server is a gRPC server on a socket.
type Server struct {
	grpc     *grpc.Server
	listener net.Listener
}

// Differ is containerd's diff service in one.
type Differ interface {
	diff.Applier
	diff.Comparer
}

// New returns a server that takes the listener over. Without a differ it has no diff service.
func New(l net.Listener, sn snapshots.Snapshotter, d Differ) *Server {
	s := &Server{listener: l, grpc: grpc.NewServer(
		grpc.MaxRecvMsgSize(maxMessage), grpc.InitialWindowSize(window), grpc.InitialConnWindowSize(window), grpc.StreamInterceptor(withClass),
		grpc.MaxConcurrentStreams(maxAtWork), grpc.WaitForHandlers(true),
	)}
	snapshotsapi.RegisterSnapshotsServer(s.grpc, snapshotservice.FromSnapshotter(sn))
	if d != nil {
		diffapi.RegisterDiffServer(s.grpc, diffservice.FromApplierAndComparer(d, d))
	}
	return s
}

// withClass gives the errors of streams their class, which containerd's service of snapshots leaves out of those of a list.
func withClass(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	return errgrpc.ToGRPC(handler(srv, stream))
}

// Serve answers requests until ctx ends; requests that run are then finished, and nothing has been left half done. The listener is closed.
func (s *Server) Serve(ctx context.Context) error {
	var stopped sync.WaitGroup
	after := context.AfterFunc(ctx, func() { stopped.Go(s.stop) })
	defer after()
	err := s.grpc.Serve(s.listener)
	if errors.Is(err, grpc.ErrServerStopped) {
		err = nil
	}
	stopped.Wait()
	if cerr := s.listener.Close(); cerr != nil && !errors.Is(cerr, net.ErrClosed) {
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return fmt.Errorf("serve containerd: %w", err)
	}
	return nil
}

// grace is how long requests may take to finish when the server ends. Then they are cancelled: nobody waits for a client that does not read its answer.
var grace = 30 * time.Second

func (s *Server) stop() {
	late := time.AfterFunc(grace, s.grpc.Stop)
	defer late.Stop()
	s.grpc.GracefulStop()
}
