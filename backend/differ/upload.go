package differ

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// compressors make a layer of a media type.
var compressors = map[string]func(io.Writer) (io.WriteCloser, error){
	ocispec.MediaTypeImageLayer:     func(w io.Writer) (io.WriteCloser, error) { return nopCloser{w}, nil },
	ocispec.MediaTypeImageLayerGzip: func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil },
	ocispec.MediaTypeImageLayerZstd: func(w io.Writer) (io.WriteCloser, error) { return zstd.NewWriter(w) },
}

// upload is a layer on its way into containerd's content store.
type upload struct {
	store  content.Store
	config diff.Config
}

// run writes what fill writes. When it fails, nothing of it stays, unless the caller has named the upload.
func (u *upload) run(ctx context.Context, fill func(io.Writer) error) (ocispec.Descriptor, error) {
	ref := u.config.Reference
	if ref == "" {
		ref = "dmlayer-diff-" + rand.Text()
	}
	w, err := u.store.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispec.Descriptor{MediaType: u.config.MediaType}))
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write layer: %w", err)
	}
	desc, err := u.write(ctx, w, fill)
	err = errors.Join(err, w.Close())
	if err != nil && u.config.Reference == "" {
		ending, cancel := endingContext(ctx)
		defer cancel()
		if aerr := u.store.Abort(ending, ref); aerr != nil && !errdefs.IsNotFound(aerr) {
			err = fmt.Errorf("%w (abort the upload: %s)", err, aerr.Error())
		}
	}
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write layer: %w", err)
	}
	return desc, nil
}

func (u *upload) write(ctx context.Context, w content.Writer, fill func(io.Writer) error) (ocispec.Descriptor, error) {
	if err := w.Truncate(0); err != nil { // what an earlier upload of that name left
		return ocispec.Descriptor{}, err
	}
	packed, err := compressors[u.config.MediaType](w)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	plain := digest.Canonical.Digester()
	err = fill(io.MultiWriter(packed, plain.Hash()))
	if err = errors.Join(err, packed.Close()); err != nil {
		return ocispec.Descriptor{}, err
	}
	all := map[string]string{labels.LabelUncompressed: plain.Digest().String()}
	for k, v := range u.config.Labels {
		all[k] = v
	}
	dgst := w.Digest()
	if err := w.Commit(ctx, 0, dgst, content.WithLabels(all)); err != nil && !errdefs.IsAlreadyExists(err) {
		return ocispec.Descriptor{}, err
	}
	info, err := u.store.Info(ctx, dgst)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	if info.Labels[labels.LabelUncompressed] == "" { // it was there, from somebody who did not know
		info.Labels = all
		if _, err := u.store.Update(ctx, info, "labels."+labels.LabelUncompressed); err != nil {
			return ocispec.Descriptor{}, err
		}
	}
	return ocispec.Descriptor{MediaType: u.config.MediaType, Size: info.Size, Digest: info.Digest}, nil
}
