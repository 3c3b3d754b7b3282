package differ

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/backend/internal/errclass"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// Apply unpacks a layer of containerd's content store into one of our active snapshots, and returns what the layer is without its compression. When it
// returns nil, what was unpacked is durable; when it fails, what was unpacked by then stays, as with containerd's own differ.
//
// ErrNotImplemented says that nothing was done, and that containerd's next differ is to do it: for mounts of other snapshotters, for media types that need
// a stream processor, and where the content cannot be had, because the containerd that asks is not the one that we know.
func (d *Differ) Apply(ctx context.Context, desc ocispec.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	var c diff.ApplyConfig
	for _, opt := range opts {
		if err := opt(ctx, desc, &c); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	node, err := d.writable(mounts)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	packed, err := compressed(ctx, desc.MediaType)
	if err == nil && len(c.ProcessorPayloads) > 0 {
		err = fmt.Errorf("apply a layer for stream processors: %w", errdefs.ErrNotImplemented)
	}
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob, err := d.content.ReaderAt(asCaller(ctx), desc)
	if err != nil {
		return ocispec.Descriptor{}, notHad(ctx, desc, err)
	}
	l, err := openLayer(blob, packed, c.Progress)
	if err == nil {
		err = d.apply(ctx, node, l)
		cancel() // who reads ahead need not wait for what nobody wants
		l.close()
	}
	if err = errors.Join(err, blob.Close()); err != nil {
		return ocispec.Descriptor{}, errclass.Translated(begun(err))
	}
	return ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Size: l.plain.Size(), Digest: digest.NewDigest(digest.SHA256, l.plain.Hash())}, nil
}

// notHad says that the content of a layer is not at hand: but for a caller who has gone, somebody else may have it.
func notHad(ctx context.Context, desc ocispec.Descriptor, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("read layer %s of containerd: %s: %w", desc.Digest, err.Error(), errdefs.ErrNotImplemented)
}

// writable returns the name of the node that mounts write to, or ErrNotImplemented. Options that change what is written are containerd's to understand.
func (d *Differ) writable(mounts []mount.Mount) (string, error) {
	names, err := d.nodes(mounts)
	if err != nil {
		return "", err
	}
	if i := slices.IndexFunc(mounts[0].Options, foreign); i >= 0 {
		return "", fmt.Errorf("apply a layer to a mount with option %q: %w", mounts[0].Options[i], errdefs.ErrNotImplemented)
	}
	return names[0], nil
}

func foreign(option string) bool {
	return option == "ro" || strings.HasPrefix(option, "uidmap=") || strings.HasPrefix(option, "gidmap=") || strings.HasPrefix(option, "X-") ||
		strings.HasPrefix(option, "x-")
}

// compressed tells whether layers of a media type are, or may be, compressed; ErrNotImplemented where they are no layers of OCI's or Docker's, or something
// has been done to them.
func compressed(ctx context.Context, mediaType string) (bool, error) {
	kind, err := images.DiffCompression(ctx, mediaType)
	if err != nil || strings.Contains(mediaType, "encrypted") {
		return false, fmt.Errorf("apply a layer of type %q: %w", mediaType, errdefs.ErrNotImplemented)
	}
	return kind != "", nil
}

func (d *Differ) apply(ctx context.Context, node string, l *layerReader) error {
	return d.store.EditClaimed(ctx, node, func(ctx context.Context, root string) error {
		_, err := layertar.Apply(ctx, root, l, layertar.ApplyOptions{ForbidDevices: d.store.Pool().Record().ForbidDevices})
		return err
	})
}

// begun keeps what cannot be done from being tried by another differ, as what a pool forbids is forbidden. Only what takes more memory than we want to
// give is containerd's to decide.
func begun(err error) error {
	if errors.Is(err, zstd.ErrWindowSizeExceeded) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrNotImplemented)
	}
	if errors.Is(err, layer.ErrUnsupported) {
		return fmt.Errorf("%w: %w", err, errdefs.ErrFailedPrecondition)
	}
	return err
}
