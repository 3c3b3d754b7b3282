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

// RemoveOptions says how RemoveWith works. The zero value is what Remove does.
type RemoveOptions struct {
	Force bool // an id takes all of the image's references along
}

// Removed tells what became of an image or of some of its references.
type Removed struct {
	Refs   []string // the references that are gone, as they were spelled
	ID     string   // of the image; "" of a reference whose record could not be read
	Image  bool     // the image went too, with its last reference
	Layers []string // the nodes that went with it, the highest first
	Kept   []string // its nodes that somebody uses, the lowest first: other images, snapshots, mounts
	Strays []string // of Kept: what no image has any more
}

// Remove removes references, and an image with its last reference or by its id, and of its layers those
// that nothing uses. Layers in use stay as layers without an image; `prune` takes them once they are
// free. An id that more than one reference leads to is ErrBusy, and the error names them.
//
// Every name is tried; the errors are joined in the order of the names.
func Remove(ctx context.Context, s *layer.Store, names ...string) ([]Removed, error) {
	return remove(ctx, storeNodes{s}, RemoveOptions{}, names...)
}

// RemoveWith is Remove with options.
func RemoveWith(ctx context.Context, s *layer.Store, o RemoveOptions, names ...string) ([]Removed, error) {
	return remove(ctx, storeNodes{s}, o, names...)
}

func remove(ctx context.Context, n nodes, o RemoveOptions, names ...string) ([]Removed, error) {
	var all []Removed
	var failed error
	for _, name := range names {
		r, err := removeOne(ctx, n, o, name)
		if r.ID != "" || len(r.Refs) > 0 {
			all = append(all, r)
		}
		if err != nil {
			failed = errors.Join(failed, err)
		}
	}
	return all, failed
}

func removeOne(ctx context.Context, n nodes, o RemoveOptions, name string) (Removed, error) {
	for range maxAttempts {
		id, ref, err := find(ctx, n, name)
		if err != nil && (ref == "" || !errors.Is(err, ErrDamaged)) {
			return Removed{}, err
		}
		r, layers, err := forget(ctx, n, id, func(refs []keyedRef) ([]keyedRef, error) {
			return doomed(id, ref, refs, o.Force)
		})
		switch {
		case err == nil:
			return removeLayers(ctx, n, r, layers)
		case !errors.Is(err, errMoved):
			return Removed{}, err
		}
	}
	return Removed{}, fmt.Errorf("remove image %.300q: %w: %w", name, errMoved, ErrBusy)
}

// doomed returns which of an image's references go when it is named by ref, or by its id where ref is "".
func doomed(id, ref string, refs []keyedRef, force bool) ([]keyedRef, error) {
	if ref == "" {
		if len(refs) > 1 && !force {
			err := fmt.Errorf("remove image %s: %q lead to it: %w", id, spellings(refs), ErrBusy)
			return nil, errs.WithHint(err, "remove the references instead, or all of them with --force")
		}
		return refs, nil
	}
	i := slices.IndexFunc(refs, func(k keyedRef) bool { return k.Spelled == ref })
	if i < 0 {
		return nil, errMoved
	}
	return refs[i : i+1], nil
}

// errMoved says that a reference leads elsewhere by now.
var errMoved = errors.New("reference was changed meanwhile")

// forget removes those references of an image that choose returns, and with the last one its record. It
// returns the layers that the record held where it is gone. References to an image that is not there can be removed too. errMoved if there is neither any
// more.
func forget(ctx context.Context, n nodes, id string, choose func(refs []keyedRef) ([]keyedRef, error)) (Removed, []string, error) {
	var r Removed
	var layers []string
	err := n.UpdateDocuments(ctx, func(tx documentTx) error {
		r, layers = Removed{ID: id}, nil
		d, err := tx.Get(kindImage, id)
		missing := errors.Is(err, ErrNotFound)
		if err != nil && !missing {
			return err
		}
		refs, err := refsTo(tx, id)
		if err != nil {
			return err
		}
		chosen, err := choose(refs)
		if err == nil && missing && len(chosen) == 0 {
			err = errMoved
		}
		if err != nil {
			return err
		}
		for _, ref := range chosen {
			if err := tx.Delete(kindRef, ref.key); err != nil {
				return err
			}
		}
		r.Refs = spellings(chosen)
		if missing || len(chosen) < len(refs) {
			return nil
		}
		r.Image, layers = true, d.Layers
		return tx.Delete(kindImage, id)
	})
	return r, layers, err
}

// removeLayers removes the layers that a forgotten image held and nothing uses, and completes r.
func removeLayers(ctx context.Context, n nodes, r Removed, layers []string) (Removed, error) {
	if err := pointUnreferenced.Hit(); err != nil {
		return r, err
	}
	for i, l := range slices.Backward(layers) {
		err := n.Remove(ctx, l)
		switch {
		case err == nil:
			r.Layers = append(r.Layers, l)
		case errors.Is(err, ErrBusy):
			r.Kept = slices.Clone(layers[:i+1]) // those below it have a child
			r.Strays, err = strays(ctx, n, r.Kept)
			return r, err
		case !errors.Is(err, ErrNotFound):
			return r, fmt.Errorf("remove image %s: %w", r.ID, err)
		}
	}
	return r, nil
}

// strays returns those of the layers that no image has.
func strays(ctx context.Context, n nodes, layers []string) ([]string, error) {
	docs, err := n.Documents(ctx, kindImage)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(layers), func(name string) bool {
		return slices.ContainsFunc(docs, func(d layer.Document) bool { return slices.Contains(d.Layers, name) })
	}), nil
}

// refsTo returns the references that lead to an image.
func refsTo(tx documentTx, id string) ([]keyedRef, error) {
	docs, err := tx.List(kindRef)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(decodeRefs(docs), func(k keyedRef) bool { return k.ID != id }), nil
}

// spellings returns the references as they were spelled, sorted.
func spellings(refs []keyedRef) []string {
	var all []string
	for _, r := range refs {
		all = append(all, r.Spelled)
	}
	slices.Sort(all)
	return all
}
