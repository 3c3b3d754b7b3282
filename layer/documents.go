package layer

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var pointDocumentsDone = fault.New("layer.documents.recorded")

// DocTx is a transaction on documents.
type DocTx struct{ tx *metadata.Tx }

// Documents returns the documents of a kind by key.
func (s *Store) Documents(ctx context.Context, kind string) ([]Document, error) {
	var docs []Document
	err := s.viewDocuments(ctx, func(tx *DocTx) (err error) {
		docs, err = tx.List(kind)
		return err
	})
	return docs, err
}

// Document returns one document, or ErrNotFound.
func (s *Store) Document(ctx context.Context, kind, key string) (Document, error) {
	var d Document
	err := s.viewDocuments(ctx, func(tx *DocTx) (err error) {
		d, err = tx.Get(kind, key)
		return err
	})
	return d, err
}

// ViewDocuments looks at documents, all as of one moment. An error of fn is returned.
func (s *Store) ViewDocuments(ctx context.Context, fn func(tx *DocTx) error) error {
	return s.viewDocuments(ctx, fn)
}

func (s *Store) viewDocuments(ctx context.Context, fn func(tx *DocTx) error) error {
	o, err := s.reader(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	return o.view(ctx, func(tx *metadata.Tx) error { return fn(&DocTx{tx}) })
}

// UpdateDocuments changes documents in one durable transaction. An error of fn is returned and leaves
// them as they were.
func (s *Store) UpdateDocuments(ctx context.Context, fn func(tx *DocTx) error) error {
	o, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	if err := o.update(ctx, func(tx *metadata.Tx) error { return fn(&DocTx{tx}) }); err != nil {
		return err
	}
	return pointDocumentsDone.Hit()
}

// Get returns one document, or ErrNotFound.
func (tx *DocTx) Get(kind, key string) (Document, error) {
	d, err := tx.tx.Document(kind, key)
	if err != nil {
		return Document{}, err
	}
	return tx.public(d)
}

// List returns the documents of a kind by key.
func (tx *DocTx) List(kind string) ([]Document, error) { return tx.ListWith(kind, "") }

// ListWith returns the documents of a kind whose keys begin with prefix, by key. It looks at no others.
func (tx *DocTx) ListWith(kind, prefix string) ([]Document, error) {
	docs, err := tx.tx.DocumentsWith(kind, prefix)
	if err != nil {
		return nil, err
	}
	out := make([]Document, len(docs))
	for i, d := range docs {
		if out[i], err = tx.public(d); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Put adds or replaces a document. A layer that it names and that is not there is ErrNotFound.
func (tx *DocTx) Put(d Document) error {
	m := metadata.Document{Kind: d.Kind, Key: d.Key, Data: d.Data}
	for _, name := range d.Layers {
		n, err := lookup(tx.tx, name)
		if err != nil {
			return fmt.Errorf("%s %q: %w", d.Kind, d.Key, err)
		}
		m.Nodes = append(m.Nodes, n.Key)
	}
	return tx.tx.PutDocument(m)
}

// Node returns a node's record, or ErrNotFound.
func (tx *DocTx) Node(name string) (Node, error) { return getPublic(tx.tx, name) }

// Delete forgets a document; one that is not there is no error.
func (tx *DocTx) Delete(kind, key string) error { return tx.tx.DeleteDocument(kind, key) }

func (tx *DocTx) public(d metadata.Document) (Document, error) {
	out := Document{Kind: d.Kind, Key: d.Key, Data: d.Data}
	for _, key := range d.Nodes {
		n, err := tx.tx.NodeByKey(key)
		if err != nil {
			return out, fmt.Errorf("%s %q: %w", d.Kind, d.Key, err)
		}
		out.Layers = append(out.Layers, n.Name)
	}
	return out, nil
}
