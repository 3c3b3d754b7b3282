package image

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/dmlayer/dmlayer/layer"
)

// The kinds of documents that this package keeps. An image's document holds its layers, in their order.
const (
	kindImage = "image" // key: the id
	kindRef   = "ref"   // key: the normalised reference
)

// imageRecord is the document of an image. Config and Manifest are kept as bytes, because their digests
// must stay what they are.
type imageRecord struct {
	Config       []byte        `json:"config"`
	Manifest     []byte        `json:"manifest"`
	ManifestType string        `json:"manifestType"`
	Platform     string        `json:"platform,omitempty"`
	Created      time.Time     `json:"created"`
	Loaded       time.Time     `json:"loaded"`
	Layers       []layerRecord `json:"layers"`
}

// layerRecord is what an image knows of one of its layers beside the node: a layer that two images share
// may have been packed in two ways.
type layerRecord struct {
	DiffID    digest.Digest `json:"diffId"`
	Digest    digest.Digest `json:"digest"`
	MediaType string        `json:"mediaType"`
	Packed    int64         `json:"packed"` // bytes in the archive
	Size      int64         `json:"size"`   // bytes of the tar
}

// refRecord is the document of a reference.
type refRecord struct {
	Spelled string    `json:"spelled"`
	ID      string    `json:"id"`
	Set     time.Time `json:"set"`
}

func newDocument(kind, key string, layers []string, record any) (layer.Document, error) {
	data, err := json.Marshal(record)
	if err != nil {
		return layer.Document{}, fmt.Errorf("%s %q: %w", kind, key, err)
	}
	return layer.Document{Kind: kind, Key: key, Layers: layers, Data: data}, nil
}

func decodeDocument(d layer.Document, into any) error {
	if err := json.Unmarshal(d.Data, into); err != nil {
		return damaged("%s %q: record: %v", d.Kind, d.Key, err)
	}
	return nil
}

func decodeImage(d layer.Document) (imageRecord, error) {
	var r imageRecord
	if err := decodeDocument(d, &r); err != nil {
		return r, err
	}
	if len(r.Layers) != len(d.Layers) {
		return r, damaged("image %q: record has %d layers, document %d", d.Key, len(r.Layers), len(d.Layers))
	}
	return r, nil
}

func putRef(tx documentTx, key string, r refRecord) error {
	d, err := newDocument(kindRef, key, nil, r)
	if err != nil {
		return err
	}
	return tx.Put(d)
}
