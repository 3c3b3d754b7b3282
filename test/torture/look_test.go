package torture_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
)

// look reads everything there is in a pool. Claims, which are the dead's, are dropped.
func look(ctx context.Context, s *layer.Store, casts []*cast) (state, error) {
	have := emptyState()
	infos, err := s.List(ctx)
	if err != nil {
		return have, err
	}
	for _, i := range infos {
		if len(i.Claims) > 0 {
			if err := s.Detach(ctx, i.Name); err != nil {
				return have, err
			}
		}
		if have.Nodes[i.Name], err = lookAt(ctx, s, i); err != nil {
			return have, fmt.Errorf("%s: %w", i.Name, err)
		}
	}
	images, err := image.List(ctx, s)
	if err != nil {
		return have, err
	}
	for _, i := range images {
		k := -1
		for _, c := range casts {
			k = max(k, c.archiveOf(i.ID))
		}
		if k < 0 || i.Ref == "" {
			return have, fmt.Errorf("there is an image %q, %s, that nobody has loaded", i.Ref, i.ID)
		}
		have.Refs[i.Ref] = k
		for _, l := range i.Layers {
			if _, ok := have.Nodes[l.Name]; !ok {
				return have, fmt.Errorf("image %q without its layer %s", i.Ref, l.Name)
			}
		}
	}
	return have, nil
}

// lookAt reads a node.
func lookAt(ctx context.Context, s *layer.Store, i layer.Info) (node, error) {
	n := node{Kind: i.Kind, Parent: i.Parent, Size: i.Size, Label: i.Labels["l"], Mounted: i.State == layer.StateMounted}
	var err error
	if n.Side, err = sideFile(ctx, s, i.Name); err != nil {
		return n, err
	}
	if i.Foreign {
		n.Raw, err = rawNumber(ctx, s, i.Name)
		return n, err
	}
	err = s.View(ctx, []string{i.Name}, func(_ context.Context, roots []string) error {
		n.Files, err = numbersIn(roots[0])
		return err
	})
	return n, err
}

// numbersIn reads the files of a directory, less those that have not got their names yet.
func numbersIn(dir string) (map[string]uint64, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	files := map[string]uint64{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			return nil, err
		}
		if files[e.Name()], err = numberOf(b, false); err != nil {
			return nil, fmt.Errorf("file %s: %w", e.Name(), err)
		}
	}
	return files, nil
}

func sideFile(ctx context.Context, s *layer.Store, name string) (uint64, error) {
	r, err := s.OpenBlob(ctx, name, sideKind)
	if errors.Is(err, layer.ErrNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	b, err := io.ReadAll(r)
	if err := errors.Join(err, r.Close()); err != nil {
		return 0, err
	}
	v, err := numberOf(b, false)
	if err != nil {
		err = fmt.Errorf("side file: %w", err)
	}
	return v, err
}

// rawNumber reads a disk that strangers wrote, which is torn where its owner was at work.
func rawNumber(ctx context.Context, s *layer.Store, name string) (uint64, error) {
	b := make([]byte, maxText)
	if err := withDisk(ctx, s, name, true, func(f *os.File) error { _, err := io.ReadFull(f, b); return err }); err != nil {
		return 0, err
	}
	v, err := numberOf(b, true)
	if err != nil {
		return torn, nil
	}
	return v, nil
}

// withDisk runs fn on an attached node's device.
func withDisk(ctx context.Context, s *layer.Store, name string, readOnly bool, fn func(*os.File) error) error {
	path, err := s.Attach(ctx, name, readOnly)
	if err != nil {
		return err
	}
	mode := os.O_RDWR
	if readOnly {
		mode = os.O_RDONLY
	}
	f, err := os.OpenFile(path, mode, 0)
	if err == nil {
		err = errors.Join(fn(f), f.Close())
	}
	return errors.Join(err, s.Detach(ctx, name))
}

// unclaimed fails for what belongs to no actor, and for a shared layer that is not what it should be. One
// that no image needs may be there: an interrupted load left it.
func unclaimed(have state, casts []*cast) error {
	var all []error
	for _, name := range slices.Sorted(maps.Keys(have.Nodes)) {
		if slices.ContainsFunc(casts, func(c *cast) bool { return c.owns(name) }) {
			continue
		}
		want, ok := casts[0].shared(name)
		if n := have.Nodes[name]; !ok || !n.same(want, true) {
			all = append(all, fmt.Errorf("%s is %v, and belongs to nobody", name, n))
		}
	}
	return errors.Join(all...)
}
