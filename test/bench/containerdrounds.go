package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	"github.com/containerd/containerd/v2/core/leases"
	leasesproxy "github.com/containerd/containerd/v2/core/leases/proxy"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
)

// snapshotClient is a client of a snapshotter.
type snapshotClient struct {
	name string
	sn   snapshots.Snapshotter
	conn *grpc.ClientConn
	dir  string // to mount on
	made int
}

const baseKey = "base"

// rooted keeps containerd from collecting a snapshot.
var rooted = snapshots.WithLabels(map[string]string{"containerd.io/gc.root": "bench"})

func (c *snapshotClient) context(ctx context.Context) context.Context {
	return namespaces.WithNamespace(ctx, "bench")
}

// base makes the snapshot that all others stand on.
func (c *snapshotClient) base(ctx context.Context) error {
	ctx = c.context(ctx)
	m, err := c.sn.Prepare(ctx, "base-active", "", rooted)
	if err != nil {
		return err
	}
	if err := c.mounted(m, func() error { return c.write("base") }); err != nil {
		return err
	}
	return c.sn.Commit(ctx, baseKey, "base-active", rooted)
}

func (c *snapshotClient) write(name string) error {
	return os.WriteFile(filepath.Join(c.dir, name), make([]byte, 4096), 0o644)
}

// mounted mounts while fn runs.
func (c *snapshotClient) mounted(m []mount.Mount, fn func() error) error {
	if err := mount.All(m, c.dir); err != nil {
		return err
	}
	return errors.Join(fn(), unix.Unmount(c.dir, 0))
}

// key is one that was not used before.
func (c *snapshotClient) key(what string) string {
	c.made++
	return fmt.Sprintf("%s-%d", what, c.made)
}

// round goes through the life of a container, and of a layer.
func (c *snapshotClient) round(ctx context.Context, t *timer) error {
	ctx = c.context(ctx)
	key, err := c.prepared(ctx, t, func() error { return nil })
	if err != nil {
		return err
	}
	t.start()
	if err := c.sn.Remove(ctx, key); err != nil {
		return err
	}
	t.lap("remove")
	if key, err = c.prepared(ctx, &timer{}, func() error { return c.write("file") }); err != nil {
		return err
	}
	layer, view := c.key("layer"), c.key("view")
	t.start()
	if err := c.sn.Commit(ctx, layer, key, rooted); err != nil {
		return err
	}
	t.lap("commit")
	if _, err := c.sn.View(ctx, view, layer, rooted); err != nil {
		return err
	}
	t.lap("view")
	if _, err := c.sn.Usage(ctx, layer); err != nil {
		return err
	}
	t.lap("usage")
	return errors.Join(c.sn.Remove(ctx, view), c.sn.Remove(ctx, layer))
}

// prepared prepares and mounts a snapshot, and unmounts it when fn is done.
func (c *snapshotClient) prepared(ctx context.Context, t *timer, fn func() error) (string, error) {
	key := c.key("active")
	t.start()
	m, err := c.sn.Prepare(ctx, key, baseKey, rooted)
	if err != nil {
		return key, err
	}
	return key, c.mounted(m, func() error {
		t.lap("prepare+mount")
		return fn()
	})
}

// snapshotRound is the same on the bare kernel, with one durable write for each record.
func (f *floor) snapshotRound(_ context.Context, t *timer) error {
	t.start()
	id, err := f.create()
	if err != nil {
		return err
	}
	if err := f.activate(id); err != nil {
		return err
	}
	if err := f.mountIt(); err != nil {
		return err
	}
	t.lap("prepare+mount")
	if err := unix.Unmount(f.mount, 0); err != nil {
		return err
	}
	t.start()
	if err := f.deactivate(id); err != nil {
		return err
	}
	if err := f.write(); err != nil {
		return err
	}
	err = f.delete(id)
	t.lap("remove")
	return err
}

// walk counts the snapshots.
func (c *snapshotClient) walk(ctx context.Context) (n int, err error) {
	err = c.sn.Walk(ctx, func(context.Context, snapshots.Info) error {
		n++
		return nil
	})
	return n, err
}

// atOnce prepares many snapshots, each by somebody else, after as many one by one, and returns what both took.
func (c *snapshotClient) atOnce(ctx context.Context, n int) (row, together time.Duration, err error) {
	ctx = c.context(ctx)
	run := func(prepare func(keys []string) error) (time.Duration, error) {
		keys := make([]string, n)
		for i := range keys {
			keys[i] = c.key("together")
		}
		from := time.Now()
		err := prepare(keys)
		took := time.Since(from)
		for _, key := range keys {
			err = errors.Join(err, c.sn.Remove(ctx, key))
		}
		return took, err
	}
	one := func(key string) error {
		_, err := c.sn.Prepare(ctx, key, baseKey, rooted)
		return err
	}
	row, err = run(func(keys []string) (err error) {
		for _, key := range keys {
			err = errors.Join(err, one(key))
		}
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	together, err = run(func(keys []string) error {
		errs := make([]error, n)
		var done sync.WaitGroup
		for i, key := range keys {
			done.Go(func() { errs[i] = one(key) })
		}
		done.Wait()
		return errors.Join(errs...)
	})
	return row, together, err
}

// usages asks for the usage of the other snapshots one by one.
func (c *snapshotClient) usages(ctx context.Context, n int) (time.Duration, error) {
	ctx = c.context(ctx)
	from := time.Now()
	for i := range n {
		if _, err := c.sn.Usage(ctx, fmt.Sprintf("other-%d", i)); err != nil {
			return 0, err
		}
	}
	return time.Since(from), nil
}

// collect has containerd collect garbage, and waits for that.
func collect(ctx context.Context, conn *grpc.ClientConn) error {
	ctx = namespaces.WithNamespace(ctx, "bench")
	m := leasesproxy.NewLeaseManager(leasesapi.NewLeasesClient(conn))
	l, err := m.Create(ctx, leases.WithRandomID())
	if err != nil {
		return err
	}
	return m.Delete(ctx, l, leases.SynchronousDelete)
}
