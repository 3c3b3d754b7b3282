package image

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/layer/layertar"
)

// RebuildLayer writes the tar of a layer that came with an image, byte by byte as it was: its sha256 is
// the diff id. ErrUnsupported if the layer is not from an image; ErrDamaged if what was written is not
// what it should be, which is found out at the end at the latest.
func RebuildLayer(ctx context.Context, s *layer.Store, name string, w io.Writer) error {
	return rebuild(ctx, storeNodes{s}, name, w)
}

func rebuild(ctx context.Context, n nodes, name string, w io.Writer) error {
	node, err := n.Get(ctx, name)
	if err != nil {
		return err
	}
	want := digest.Digest(node.Attrs[attrDiffID])
	if want == "" {
		return unsupported("rebuild layer %q: it does not come from an image", name)
	}
	h := digest.SHA256.Hash()
	out := io.MultiWriter(w, h)
	err = copyKept(ctx, n, name, out)
	if errors.Is(err, ErrNotFound) {
		err = assemble(ctx, n, name, out)
	}
	if err != nil {
		return fmt.Errorf("rebuild layer %q: %w", name, err)
	}
	if got := digest.NewDigest(digest.SHA256, h); got != want {
		return damaged("rebuild layer %q: it has the diff id %s now, and had %s", name, got, want)
	}
	return nil
}

// copyKept writes the tar of a layer that is kept as it came; ErrNotFound for all others.
func copyKept(ctx context.Context, n nodes, name string, w io.Writer) error {
	kept, err := n.OpenBlob(ctx, name, blobTar)
	if err != nil {
		return err
	}
	defer kept.Close()
	z, _, err := unpacked(contextReader{ctx, kept})
	if err != nil {
		return err
	}
	defer z.Close()
	_, err = io.Copy(w, z)
	return err
}

// assemble writes the tar of a layer from its record and its files.
func assemble(ctx context.Context, n nodes, name string, w io.Writer) error {
	record, err := n.OpenBlob(ctx, name, blobTarSplit)
	if errors.Is(err, ErrNotFound) {
		return damaged("the record of its tar is gone: %v", err)
	}
	if err != nil {
		return err
	}
	defer record.Close()
	return n.View(ctx, []string{name}, func(ctx context.Context, roots []string) error {
		return layertar.Rebuild(ctx, roots[0], record, w)
	})
}
