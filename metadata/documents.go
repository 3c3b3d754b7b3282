package metadata

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/dmlayer/dmlayer/internal/errs"
)

func docKey(kind, key string) []byte { return []byte(kind + "\x00" + key) }

// Document returns one document, or ErrNotFound.
func (tx *Tx) Document(kind, key string) (Document, error) {
	var d Document
	v := tx.b.Bucket(bucketDocs).Get(docKey(kind, key))
	if v == nil {
		return d, fmt.Errorf("%s %q: %w", kind, key, errs.ErrNotFound)
	}
	return d, decode(kind+" "+key, v, &d)
}

// Documents returns the documents of one kind, by key.
func (tx *Tx) Documents(kind string) ([]Document, error) { return tx.DocumentsWith(kind, "") }

// PutDocument adds or replaces a document. A node that it names and that is not there is ErrNotFound;
// a kind or key with a NUL byte is ErrInvalid.
func (tx *Tx) PutDocument(d Document) error {
	if d.Kind == "" || d.Key == "" || strings.Contains(d.Kind+d.Key, "\x00") {
		return fmt.Errorf("document %q %q: %w", d.Kind, d.Key, errs.ErrInvalid)
	}
	if err := tx.DeleteDocument(d.Kind, d.Key); err != nil {
		return err
	}
	key := docKey(d.Kind, d.Key)
	for _, node := range d.Nodes {
		if _, err := tx.NodeByKey(node); err != nil {
			return fmt.Errorf("%s %q: %w", d.Kind, d.Key, err)
		}
	}
	if err := tx.hold(d.Nodes, key); err != nil {
		return err
	}
	return tx.put(bucketDocs, key, d)
}

// hold has the nodes of the document with a key lead to it.
func (tx *Tx) hold(nodes []Key, key []byte) error {
	for _, node := range nodes {
		if err := tx.b.Bucket(bucketDocRefs).Put(append(u64(node), key...), []byte{}); err != nil {
			return err
		}
	}
	return nil
}

// DeleteDocument forgets a document; one that is not there is no error.
func (tx *Tx) DeleteDocument(kind, key string) error {
	k := docKey(kind, key)
	v := tx.b.Bucket(bucketDocs).Get(k)
	if v == nil {
		return nil
	}
	var d Document
	if err := decode(kind+" "+key, v, &d); err != nil {
		return err
	}
	for _, node := range d.Nodes {
		if err := tx.b.Bucket(bucketDocRefs).Delete(append(u64(node), k...)); err != nil {
			return err
		}
	}
	return tx.b.Bucket(bucketDocs).Delete(k)
}

// DocumentsOf returns "kind key" of each document that names the node.
func (tx *Tx) DocumentsOf(node Key) []string {
	var names []string
	prefix := u64(node)
	c := tx.b.Bucket(bucketDocRefs).Cursor()
	for k, _ := c.Seek(prefix); bytes.HasPrefix(k, prefix); k, _ = c.Next() {
		names = append(names, strings.Replace(string(k[len(prefix):]), "\x00", " ", 1))
	}
	return names
}

// DocumentsWith returns the documents of one kind whose keys begin with prefix, by key.
func (tx *Tx) DocumentsWith(kind, prefix string) ([]Document, error) {
	var docs []Document
	from := docKey(kind, prefix)
	c := tx.b.Bucket(bucketDocs).Cursor()
	for k, v := c.Seek(from); bytes.HasPrefix(k, from); k, v = c.Next() {
		var d Document
		if err := decode(string(k), v, &d); err != nil {
			return nil, err
		}
		docs = append(docs, d)
	}
	return docs, nil
}
