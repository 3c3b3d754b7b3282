// Package differ unpacks layers into snapshots of package snapshotter, and makes layers of what changed between two of them, for containerd's diff service.
//
// It works on what it knows: mounts of our own nodes. A layer is unpacked as image load does it, durable when that is done. Of two nodes that are
// compared, the upper one may be in use, where containerd's own differ cannot mount a device read-only that a container has mounted; files that nobody touched
// are not read, as the one file system began as a copy of the other. For everything else it says ErrNotImplemented, and containerd asks the next of
// its differs.
package differ

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/backend/internal/errclass"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// Differ fills and compares nodes of a store. It is safe for concurrent use.
type Differ struct {
	store   *layer.Store
	content content.Store
	leases  leases.Manager
}

var (
	_ diff.Comparer = (*Differ)(nil)
	_ diff.Applier  = (*Differ)(nil)
)

// New returns a differ that has layers in containerd's content store, new ones under leases of its own where the caller's are not told.
func New(store *layer.Store, c content.Store, l leases.Manager) *Differ { return &Differ{store, c, l} }

// Compare writes a layer that turns lower into upper. The upper snapshot may be mounted for writing: then the layer has what its file system
// shows while it is read.
func (d *Differ) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispec.Descriptor, error) {
	var c diff.Config
	for _, opt := range opts {
		if err := opt(&c); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	if c.MediaType == "" {
		c.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	names, err := d.nodes(lower, upper)
	if err == nil && (c.Compressor != nil || c.SourceDateEpoch != nil || compressors[c.MediaType] == nil) {
		err = fmt.Errorf("compare snapshots to %q with a compressor or time of its own: %w", c.MediaType, errdefs.ErrNotImplemented)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	o, err := d.lineage(ctx, names)
	if err != nil {
		return ocispec.Descriptor{}, errclass.Translated(err)
	}
	var desc ocispec.Descriptor
	err = d.store.View(ctx, names, func(ctx context.Context, roots []string) error {
		up, release, err := d.leased(asCaller(ctx))
		if err != nil {
			return err
		}
		u := upload{store: d.content, config: c}
		desc, err = u.run(up, func(w io.Writer) error { return layertar.WriteDiff(ctx, w, roots[0], roots[1], o) })
		if err != nil {
			return errors.Join(err, release())
		}
		return nil
	})
	return desc, errclass.Translated(err)
}

// asCaller lets what is asked of containerd be in the namespace and under the lease of who asks us, or the content would not be his and
// might be collected before he has seen it.
func asCaller(ctx context.Context) context.Context {
	if ns, ok := namespaces.Namespace(ctx); ok {
		ctx = namespaces.WithNamespace(ctx, ns)
	}
	if lease, ok := leases.FromContext(ctx); ok {
		ctx = leases.WithLease(ctx, lease)
	}
	return ctx
}

// lastWord is how long containerd is waited for when what it keeps for us is taken back. It forgets that by itself later.
const lastWord = 10 * time.Second

// endingContext is for what is taken back though ctx may have ended.
func endingContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), lastWord)
}

// untilUsed is how long containerd's garbage collector leaves alone what was made for a caller whose lease is unknown. Until then he has an image refer to it.
const untilUsed = time.Hour

// leased sees to it that ctx has a lease: containerd does not tell a proxy differ that of its caller, and without one its collector may take what was made
// before the caller has used it. The function releases it early.
func (d *Differ) leased(ctx context.Context) (context.Context, func() error, error) {
	if _, ok := leases.FromContext(ctx); ok {
		return ctx, func() error { return nil }, nil
	}
	l, err := d.leases.Create(ctx, leases.WithID("dmlayer-diff-"+rand.Text()), leases.WithExpiration(untilUsed))
	if err != nil {
		return nil, nil, fmt.Errorf("lease for a layer: %w", err)
	}
	release := func() error {
		ending, cancel := endingContext(ctx)
		defer cancel()
		if err := d.leases.Delete(ending, l); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("release lease %s: %w", l.ID, err)
		}
		return nil
	}
	return leases.WithLease(ctx, l.ID), release, nil
}

// nodes returns the names of the nodes that mounts are of, or ErrNotImplemented.
func (d *Differ) nodes(all ...[]mount.Mount) ([]string, error) {
	var names []string
	for _, mounts := range all {
		if len(mounts) != 1 || mounts[0].Target != "" || filepath.Dir(mounts[0].Source) != d.store.Pool().DeviceDir() {
			return nil, fmt.Errorf("mounts that are not of one of our snapshots: %w", errdefs.ErrNotImplemented)
		}
		names = append(names, filepath.Base(mounts[0].Source))
	}
	return names, nil
}

// lineage tells whether the upper node began as a copy of the lower one.
func (d *Differ) lineage(ctx context.Context, names []string) (layertar.WriteOptions, error) {
	lower, err := d.store.Get(ctx, names[0])
	if err != nil {
		return layertar.WriteOptions{}, err
	}
	upper, err := d.store.Get(ctx, names[1])
	same := err == nil && lower.Kind == layer.KindLayer && upper.Parent == lower.Name
	return layertar.WriteOptions{DiffOptions: layertar.DiffOptions{SameLineage: same}}, err
}
