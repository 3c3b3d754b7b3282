package image

import (
	"context"
	"io"

	"github.com/dmlayer/dmlayer/layer"
)

// nodes is what this package needs of a layer.Store. The methods mean what they mean there.
type nodes interface {
	CreateLayers(ctx context.Context, layers []newLayer) ([]layer.Node, error)
	Get(ctx context.Context, name string) (layer.Node, error)
	Remove(ctx context.Context, name string) error
	OpenBlob(ctx context.Context, name, kind string) (io.ReadCloser, error)
	View(ctx context.Context, names []string, fn func(ctx context.Context, roots []string) error) error
	Documents(ctx context.Context, kind string) ([]layer.Document, error)
	Document(ctx context.Context, kind, key string) (layer.Document, error)
	UpdateDocuments(ctx context.Context, fn func(tx documentTx) error) error
}

// newLayer is a layer.NewLayer.
type newLayer struct {
	name string
	o    layer.LayerOptions
	fill func(ctx context.Context, w layerWriter) error
}

// layerWriter is where a new layer is filled: *layer.LayerWriter.
type layerWriter interface {
	Root() string
	Blob(kind string) (io.WriteCloser, error)
	SetAttr(key, value string)
	DevicesForbidden() bool
}

// documentTx is a transaction over documents: *layer.DocTx.
type documentTx interface {
	Get(kind, key string) (layer.Document, error)
	List(kind string) ([]layer.Document, error)
	Put(d layer.Document) error
	Delete(kind, key string) error
}

// storeNodes makes a layer.Store speak in this package's interfaces.
type storeNodes struct{ *layer.Store }

func (s storeNodes) CreateLayers(ctx context.Context, layers []newLayer) ([]layer.Node, error) {
	all := make([]layer.NewLayer, len(layers))
	for i, l := range layers {
		all[i] = layer.NewLayer{
			Name: l.name, Options: l.o,
			Fill: func(ctx context.Context, w *layer.LayerWriter) error { return l.fill(ctx, w) },
		}
	}
	return s.Store.CreateLayers(ctx, all)
}

func (s storeNodes) UpdateDocuments(ctx context.Context, fn func(tx documentTx) error) error {
	return s.Store.UpdateDocuments(ctx, func(tx *layer.DocTx) error { return fn(tx) })
}
