package image

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
)

var pointUnreferenced = fault.New("image.rm.unreferenced")

// Removed tells what Remove did for one name.
type Removed struct {
	Ref    string   // the reference that is gone, as it was spelled; "" for none
	ID     string   // of the image
	Image  bool     // the image went too, with its last reference
	Layers []string // the nodes that went with it, the highest first
	Kept   []string // its nodes that somebody uses: other images, snapshots, mounts
}

// Remove removes references, and an image with its last reference or by its id, and of its layers those
// that nothing uses. Layers in use stay as layers without an image; `prune` takes them once they are
// free. An id that more than one reference leads to is ErrBusy, and the error names them.
//
// Every name is tried; the errors are joined in the order of the names.
func Remove(ctx context.Context, s *layer.Store, names ...string) ([]Removed, error) {
	return remove(ctx, storeNodes{s}, names...)
}

func remove(ctx context.Context, n nodes, names ...string) ([]Removed, error) {
	var all []Removed
	var failed error
	for _, name := range names {
		r, err := removeOne(ctx, n, name)
		if r.ID != "" {
			all = append(all, r)
		}
		if err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return all, failed
}

func removeOne(ctx context.Context, n nodes, name string) (Removed, error) {
	r, layers, err := forget(ctx, n, name)
	if err != nil {
		return Removed{}, err
	}
	if err := pointUnreferenced.Hit(); err != nil {
		return r, err
	}
	for i, l := range slices.Backward(layers) {
		err := n.Remove(ctx, l)
		switch {
		case err == nil:
			r.Layers = append(r.Layers, l)
		case errors.Is(err, ErrBusy):
			r.Kept = slices.Clone(layers[:i+1])
			return r, nil // and those below it have a child
		case !errors.Is(err, ErrNotFound):
			return r, fmt.Errorf("remove image %s: %w", r.ID, err)
		}
	}
	return r, nil
}

// forget removes the records, and returns the layers that they held where the image is gone.
func forget(ctx context.Context, n nodes, name string) (Removed, []string, error) {
	for range maxAttempts {
		id, ref, err := find(ctx, n, name)
		if err != nil {
			return Removed{}, nil, err
		}
		r, layers, err := forgetFound(ctx, n, id, ref)
		if !errors.Is(err, errMoved) {
			return r, layers, err
		}
	}
	return Removed{}, nil, fmt.Errorf("remove image %.300q: %w: %w", name, errMoved, ErrBusy)
}

// errMoved says that a reference leads elsewhere by now.
var errMoved = errors.New("reference was changed meanwhile")

// forgetFound removes the reference, or the image where ref is "", if everything is still as it was found.
func forgetFound(ctx context.Context, n nodes, id, ref string) (Removed, []string, error) {
	var r Removed
	var layers []string
	err := n.UpdateDocuments(ctx, func(tx documentTx) error {
		r, layers = Removed{ID: id, Ref: ref}, nil
		refs, err := refsTo(tx, id)
		if err != nil {
			return err
		}
		if ref == "" && len(refs) > 1 {
			err := fmt.Errorf("remove image %s: %q lead to it: %w", id, spellings(refs), ErrBusy)
			return errs.WithHint(err, "remove the references instead")
		}
		if ref == "" && len(refs) == 1 {
			r.Ref = refs[0].Spelled
		}
		if r.Ref != "" {
			i := slices.IndexFunc(refs, func(k keyedRef) bool { return k.Spelled == r.Ref })
			if i < 0 {
				return errMoved
			}
			if err := tx.Delete(kindRef, refs[i].key); err != nil {
				return err
			}
		}
		if len(refs) > 1 {
			return nil
		}
		d, err := tx.Get(kindImage, id)
		if errors.Is(err, ErrNotFound) {
			return errMoved
		}
		if err != nil {
			return err
		}
		r.Image, layers = true, d.Layers
		return tx.Delete(kindImage, id)
	})
	return r, layers, err
}

// refsTo returns the references that lead to an image.
func refsTo(tx documentTx, id string) ([]keyedRef, error) {
	docs, err := tx.List(kindRef)
	if err != nil {
		return nil, err
	}
	refs, err := decodeRefs(docs)
	return slices.DeleteFunc(refs, func(k keyedRef) bool { return k.ID != id }), err
}

func spellings(refs []keyedRef) []string {
	var all []string
	for _, r := range refs {
		all = append(all, r.Spelled)
	}
	return all
}
