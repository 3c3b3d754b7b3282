package snapshotter_test

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/dmlayer/dmlayer/backend/containerd"
	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/internal/socket"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestMain leaves out the one of containerd's cases that takes minutes, a chain of 128 layers, unless the long form is asked for.
func TestMain(m *testing.M) {
	flag.Parse()
	if skip := flag.Lookup("test.skip"); skip.Value.String() == "" && os.Getenv("DMLAYER_TEST_LONG") == "" {
		_ = skip.Value.Set("TestSuite/.*/128LayersMount") // any text is taken
	}
	testenv.Main(m)
}

// dialed serves a store on a socket for the length of the test and returns a client's view of it.
func dialed(t testing.TB, s *layer.Store) snapshots.Snapshotter {
	t.Helper()
	path := filepath.Join(t.TempDir(), "run", "containerd.sock")
	l, err := socket.Listen(pooltest.Context(t), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- containerd.New(l, snapshotter.New(s), nil).Serve(ctx) }()
	conn, err := grpc.NewClient("unix://"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		if err := conn.Close(); err != nil {
			t.Error(err)
		}
	})
	return proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), "dmlayer")
}

// prefixed gives a test keys of its own.
type prefixed struct {
	snapshots.Snapshotter
	prefix string
}

func (p prefixed) in(key string) string {
	if key == "" {
		return ""
	}
	return p.prefix + key
}

func (p prefixed) out(i snapshots.Info) snapshots.Info {
	i.Name, i.Parent = strings.TrimPrefix(i.Name, p.prefix), strings.TrimPrefix(i.Parent, p.prefix)
	return i
}

func (p prefixed) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	i, err := p.Snapshotter.Stat(ctx, p.in(key))
	return p.out(i), err
}

func (p prefixed) Update(ctx context.Context, i snapshots.Info, fields ...string) (snapshots.Info, error) {
	i.Name, i.Parent = p.in(i.Name), p.in(i.Parent)
	i, err := p.Snapshotter.Update(ctx, i, fields...)
	return p.out(i), err
}

func (p prefixed) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	return p.Snapshotter.Usage(ctx, p.in(key))
}

func (p prefixed) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	return p.Snapshotter.Mounts(ctx, p.in(key))
}

func (p prefixed) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return p.Snapshotter.Prepare(ctx, p.in(key), p.in(parent), opts...)
}

func (p prefixed) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	return p.Snapshotter.View(ctx, p.in(key), p.in(parent), opts...)
}

func (p prefixed) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	return p.Snapshotter.Commit(ctx, p.in(name), p.in(key), opts...)
}

func (p prefixed) Remove(ctx context.Context, key string) error {
	return p.Snapshotter.Remove(ctx, p.in(key))
}

var inFilter = regexp.MustCompile(`\b(name|parent)==([A-Za-z])`)

func (p prefixed) Walk(ctx context.Context, fn snapshots.WalkFunc, fs ...string) error {
	for i, f := range fs {
		fs[i] = inFilter.ReplaceAllString(f, "${1}=="+p.prefix+"${2}")
	}
	return p.Snapshotter.Walk(ctx, func(ctx context.Context, i snapshots.Info) error {
		if !strings.HasPrefix(i.Name, p.prefix) {
			return nil
		}
		return fn(ctx, p.out(i))
	}, fs...)
}

// removeAll removes every snapshot of a test, children first.
func removeAll(ctx context.Context, s snapshots.Snapshotter) error {
	for {
		var left []snapshots.Info
		parents := map[string]bool{}
		err := s.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
			left, parents[i.Parent] = append(left, i), true
			return nil
		})
		if err != nil || len(left) == 0 {
			return err
		}
		for _, i := range left {
			if parents[i.Name] {
				continue
			}
			if err := s.Remove(ctx, i.Name); err != nil {
				return fmt.Errorf("remove %q: %w", i.Name, err)
			}
		}
	}
}
