package image

import (
	"context"
	"strconv"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/layer"
)

// What a layer node that came with an image has as attributes.
const (
	attrChainID   = layer.AttrChainID
	attrDiffID    = "image.diffID"
	attrDigest    = "image.digest" // of the layer as it came: packed or not
	attrPacked    = "image.packedSize"
	attrSize      = "image.size" // of its tar; layers made before this was kept lack it
	attrMediaType = "image.mediaType"
	attrPosition  = "image.position" // in the chain, 0 is the lowest
)

// sizeAttr returns a size that a node has as an attribute, -1 for none.
func sizeAttr(attrs map[string]string, key string) int64 {
	n, err := strconv.ParseInt(attrs[key], 10, 64)
	if err != nil {
		return -1
	}
	return n
}

// check compares what manifests say of the layers' files with what the archive has, without reading
// them.
func (l *loader) check(ctx context.Context) error {
	for _, a := range l.images {
		for i := range a.layers {
			lay := &a.layers[i]
			b, err := lay.open(ctx, l.tree)
			if err != nil {
				return err
			}
			lay.size = b.size
			if err := b.Close(); err != nil {
				return err
			}
		}
	}
	return nil
}

// complete fills in what the archive does not spell of its layers. All of them are there; those that
// were before this load are read only where nothing else tells.
func (l *loader) complete(ctx context.Context) error {
	for _, a := range l.images {
		for i := range a.layers {
			if err := l.completeLayer(ctx, &a.layers[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *loader) completeLayer(ctx context.Context, lay *archivedLayer) error {
	tar, err := l.tarSize(ctx, lay)
	if err != nil {
		return err
	}
	blob := l.digest(lay, tar)
	if tar < 0 || blob == "" {
		f, err := l.measure(ctx, lay)
		if err != nil {
			return err
		}
		tar, blob = f.tar, f.blob
	}
	lay.tar, lay.blob = tar, blob
	return nil
}

// tarSize returns how large the tar of a layer is, -1 where nobody knows.
func (l *loader) tarSize(ctx context.Context, lay *archivedLayer) (int64, error) {
	if f, ok := l.found[lay.name]; ok {
		return f.tar, nil
	}
	if size := sizeAttr(l.attrs[lay.name], attrSize); size >= 0 {
		return size, nil
	}
	if l.recorded == nil {
		if err := l.readRecorded(ctx); err != nil {
			return 0, err
		}
	}
	if size, ok := l.recorded[lay.name]; ok {
		return size, nil
	}
	return -1, nil
}

// digest returns the digest of a layer's bytes in the archive, "" where nobody knows.
func (l *loader) digest(lay *archivedLayer, tar int64) digest.Digest {
	attrs := l.attrs[lay.name]
	switch f := l.found[lay.name]; {
	case lay.blob != "":
		return lay.blob
	case f.path == lay.path, f.path != "" && f.packed == lay.size:
		return f.blob
	case lay.size == tar:
		return lay.diffID // it is not packed
	case lay.size == sizeAttr(attrs, attrPacked):
		return digest.Digest(attrs[attrDigest]) // it came as it did before
	}
	return ""
}

// known reports whether nothing of a layer that is there has to be read to complete it.
func (l *loader) known(lay *archivedLayer) bool {
	if _, made := l.found[lay.name]; made {
		return true
	}
	return lay.blob != "" && sizeAttr(l.attrs[lay.name], attrSize) >= 0
}

// measure reads a layer that is there already, only to learn of its size and digest.
func (l *loader) measure(ctx context.Context, lay *archivedLayer) (facts, error) {
	r := l.readLayer(ctx, lay, StageVerify)
	defer r.close()
	f, err := r.drain()
	if err == nil {
		l.found[lay.name] = f
	}
	return f, err
}

// readRecorded collects the sizes of the layers that recorded images have.
func (l *loader) readRecorded(ctx context.Context) error {
	docs, err := l.Documents(ctx, kindImage)
	if err != nil {
		return err
	}
	l.recorded = map[string]int64{}
	for _, d := range docs {
		r, err := decodeImage(d)
		if err != nil {
			return err
		}
		for i, name := range d.Layers {
			l.recorded[name] = r.Layers[i].Size
		}
	}
	return nil
}
