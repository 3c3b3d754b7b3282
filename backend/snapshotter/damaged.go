package snapshotter

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/layer"
)

// A record that cannot be read keeps nobody from the others. Who lists snapshots, or asks what is known of that one, is told its name, no parent, and a label that
// says what is wrong: containerd's lists go on, and its garbage collector, which removes what a list has and its own records have not, finds what stands on that
// snapshot, and removes it once nobody refers to it. What a list left out would stay for ever, with all that stands on it. Nobody gets to its content or builds on
// it: who mounts or commits it, or wants it for a parent, is told what is wrong.

// labelDamaged is a label of a snapshot whose record cannot be read: the error.
const labelDamaged = "dmlayer/damaged"

// told is what is known of a document that should be a snapshot's.
func told(d layer.Document) snapshots.Info {
	r, err := decode(d)
	if err != nil {
		return snapshots.Info{Name: d.Key, Labels: map[string]string{labelDamaged: strings.ToValidUTF8(err.Error(), "\uFFFD")}}
	}
	return r.info()
}

// Damaged returns what is wrong with the records of snapshots that cannot be read, by key. The error is that of reading.
func Damaged(ctx context.Context, store *layer.Store) (map[string]error, error) {
	found := map[string]error{}
	err := store.ViewDocuments(ctx, func(tx *layer.DocTx) error {
		docs, err := tx.List(kindSnapshot)
		for _, d := range docs {
			if _, err := decode(d); err != nil {
				found[d.Key] = err
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("check snapshots: %w", err)
	}
	return found, nil
}

// dropDamaged removes a snapshot whose record cannot be read, which is all that can be done about it. Its node goes as with any other, where nothing else needs it.
func (s *Snapshotter) dropDamaged(ctx context.Context, key string) error {
	var d layer.Document
	err := s.store.ViewDocuments(ctx, func(tx *layer.DocTx) (err error) {
		d, err = damaged(tx, key)
		return err
	})
	if err != nil {
		return err
	}
	forget := func(tx *layer.DocTx) error {
		now, err := damaged(tx, key)
		if err == nil && string(now.Data) != string(d.Data) {
			err = fmt.Errorf("snapshot %q was replaced: %w", key, errdefs.ErrNotFound)
		}
		if err == nil {
			err = childless(tx, key)
		}
		if err != nil {
			return err
		}
		return forgetDamaged(tx, key)
	}
	if len(d.Layers) != 1 {
		return s.store.UpdateDocuments(ctx, forget)
	}
	_, err = s.store.Drop(ctx, d.Layers[0], claimOf(key), forget)
	return err
}

// damaged returns the document of a snapshot whose record cannot be read, and ErrNotFound where there is none.
func damaged(tx documents, key string) (layer.Document, error) {
	d, err := document(tx, key)
	if err == nil {
		if _, rerr := decode(d); rerr == nil {
			err = fmt.Errorf("snapshot %q is not damaged any more: %w", key, errdefs.ErrNotFound)
		}
	}
	return d, err
}

// forgetDamaged removes a snapshot's document and what leads to it: from where, only its record would have told.
func forgetDamaged(tx documents, key string) error {
	err := tx.Delete(kindSnapshot, key)
	for _, kind := range []string{kindChild, kindRef} {
		docs, lerr := tx.List(kind)
		err = errors.Join(err, lerr)
		for _, d := range docs {
			if len(d.Key) >= prefixLen && d.Key[prefixLen:] == key {
				err = errors.Join(err, tx.Delete(kind, d.Key))
			}
		}
	}
	return err
}
