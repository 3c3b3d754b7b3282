package containerd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dmlayer/dmlayer/backend/containerd"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// served is an endpoint on a socket.
type served struct {
	t      *testing.T
	socket string
	stop   func() // waits until what runs is done
}

func serve(t *testing.T, store *layer.Store) *served {
	t.Helper()
	s := &served{t: t, socket: filepath.Join(t.TempDir(), "run", "containerd.sock")}
	e, err := containerd.Open(t.Context(), store, s.socket, "/nowhere")
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- e.Serve(ctx) }()
	s.stop = func() {
		cancel()
		must(t, <-ended)
	}
	return s
}

func (s *served) dial() (*grpc.ClientConn, snapshots.Snapshotter) {
	s.t.Helper()
	conn, err := grpc.NewClient("unix://"+s.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(s.t, err)
	return conn, proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "dmlayer")
}

// TestClientGoesAway cuts the connection at each point that a request reaches. Whatever was done is whole, the request can be made again
// or has been done, and nothing is left over.
func TestClientGoesAway(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	store := e.Open(t)
	ctx := pooltest.Context(t)
	s := serve(t, store)
	conn, sn := s.dial()
	_, err := sn.Prepare(ctx, "base-active", "")
	must(t, err)
	must(t, sn.Commit(ctx, "base", "base-active"))
	s.stop()
	must(t, conn.Close())
	prepare := func(sn snapshots.Snapshotter, key string) error { _, err := sn.Prepare(ctx, key, "base"); return err }
	for name, run := range map[string]func(sn snapshots.Snapshotter, key string) error{
		"prepare": prepare,
		"view":    func(sn snapshots.Snapshotter, key string) error { _, err := sn.View(ctx, key, "base"); return err },
		"commit":  func(sn snapshots.Snapshotter, key string) error { return sn.Commit(ctx, key+"-c", key) },
		"remove":  func(sn snapshots.Snapshotter, key string) error { return sn.Remove(ctx, key) },
	} {
		for hit := 1; ; hit++ {
			key := fmt.Sprintf("%s-%d", name, hit)
			s := serve(t, store)
			conn, sn := s.dial()
			if name == "commit" || name == "remove" {
				must(t, prepare(sn, key))
			}
			seen := 0
			fault.Set(func(string) error {
				if seen++; seen == hit {
					_ = conn.Close()
				}
				return nil
			})
			_ = run(sn, key)
			s.stop()
			fault.Set(nil)
			_ = conn.Close()
			must(t, e.CheckLive(ctx))
			s = serve(t, store)
			conn, sn = s.dial()
			if err := run(sn, key); err != nil && !errdefs.IsAlreadyExists(err) && !errdefs.IsNotFound(err) {
				t.Errorf("%s, again after the client went away at point %d: %v", name, hit, err)
			}
			for _, left := range []string{key, key + "-c"} {
				if err := sn.Remove(ctx, left); err != nil && !errdefs.IsNotFound(err) {
					t.Errorf("remove %s: %v", left, err)
				}
			}
			s.stop()
			must(t, conn.Close())
			if seen < hit {
				break
			}
		}
		all, err := store.List(ctx)
		must(t, err)
		if len(all) != 1 || all[0].State != layer.StateInactive {
			t.Errorf("%s: left are %+v", name, all)
		}
	}
	s = serve(t, store)
	conn, sn = s.dial()
	must(t, sn.Remove(ctx, "base"))
	s.stop()
	must(t, conn.Close())
}

// TestClientThatDoesNotRead asks for a long list and reads none of it: others are served, also when they change what is listed, and the server ends.
func TestClientThatDoesNotRead(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	store := e.Open(t)
	ctx := pooltest.Context(t)
	defer containerd.SetGrace(100 * time.Millisecond)()
	s := serve(t, store)
	conn, sn := s.dial()
	defer conn.Close()
	_, err := sn.Prepare(ctx, "active", "")
	must(t, err)
	must(t, sn.Commit(ctx, "base", "active"))
	for i := range 70 {
		_, err := sn.View(ctx, fmt.Sprintf("view-%d", i), "base", snapshots.WithLabels(map[string]string{"long": strings.Repeat("x", 30<<10)}))
		must(t, err)
	}
	deaf, _ := s.dial()
	defer deaf.Close()
	list, err := snapshotsapi.NewSnapshotsClient(deaf).List(ctx, &snapshotsapi.ListSnapshotsRequest{})
	must(t, err)
	_, err = list.Header() // the answer has begun
	must(t, err)
	for i := range 70 {
		must(t, sn.Remove(ctx, fmt.Sprintf("view-%d", i)))
	}
	must(t, sn.Remove(ctx, "base"))
	s.stop()
	must(t, e.CheckLive(ctx))
}

// TestSocket opens endpoints where they cannot, or need not, be.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	must(t, os.Mkdir(dir, 0o700))
	path := filepath.Join(dir, "containerd.sock")
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	must(t, err)
	dead.SetUnlinkOnClose(false)
	must(t, dead.Close())
	open := func(path string) (*containerd.Endpoint, error) {
		return containerd.Open(t.Context(), nil, path, "/nowhere")
	}
	first, err := open(path) // in the place of what a dead daemon left
	must(t, err)
	if fi, err := os.Lstat(path); err != nil || fi.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket is %v, %v", fi.Mode(), err)
	}
	if _, err := open(path); !errors.Is(err, errs.ErrBusy) || errs.Hint(err) == "" {
		t.Errorf("two daemons on one socket: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must(t, first.Serve(ctx))
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
	must(t, os.Chmod(dir, 0o777))
	if _, err := open(path); !errors.Is(err, errs.ErrInvalid) || errs.Hint(err) == "" {
		t.Errorf("a socket that others could replace: %v", err)
	}
}
