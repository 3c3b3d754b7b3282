package torture_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

func (a *actor) mount() (operation, bool) {
	name := a.aSnapshot()
	n, ok := a.state.Nodes[name]
	text := "mount " + name
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := s.Mount(ctx, name, "", layer.MountOptions{})
		return err
	}
	switch {
	case !ok:
		return refused(text, errs.ErrNotFound, run)
	case n.Raw != 0:
		return refused(text, errs.ErrDamaged, run)
	}
	n.Mounted = true
	return changes(text, a.state.put(name, n), run)
}

func (a *actor) unmount() (operation, bool) {
	name := a.aSnapshot()
	n := a.state.Nodes[name]
	text := "unmount " + name
	run := func(ctx context.Context, s *layer.Store) error { return s.Unmount(ctx, name) }
	if !n.Mounted {
		return refused(text, errs.ErrNotFound, run)
	}
	n.Mounted = false
	return changes(text, a.state.put(name, n), run)
}

// rawWrite does what a VM does that flushes its disk.
func (a *actor) rawWrite() (operation, bool) {
	name, v := a.aDisk(), a.number()
	n, ok := a.state.Nodes[name]
	if !ok || n.Mounted {
		return operation{}, false
	}
	n.Files, n.Raw = nil, torn
	between := a.state.put(name, n)
	n.Raw = v
	return operation{
		text:   fmt.Sprintf("write %x to disk %s", v, name),
		states: []state{between, a.state.put(name, n)},
		run: func(ctx context.Context, s *layer.Store) error {
			return withDisk(ctx, s, name, false, func(f *os.File) error {
				_, err := f.Write(text(v))
				return errors.Join(err, f.Sync())
			})
		},
	}, true
}

// rawMove does what a VM does that writes to a file system on its disk and closes it without a flush, and turns
// the disk into a layer.
func (a *actor) rawMove() (operation, bool) {
	from, name, v := a.aDisk(), a.aLayer(), a.number()
	n, ok := a.state.Nodes[from]
	if _, taken := a.state.Nodes[name]; !ok || taken || n.Mounted || n.Raw != 0 {
		return operation{}, false
	}
	unknown := n
	unknown.Files, unknown.Raw = nil, torn
	after := a.moved(from, name)
	return operation{
		text:   fmt.Sprintf("write %x on disk %s without a flush, and commit --move --trust it to %s", v, from, name),
		states: []state{a.state.put(from, unknown), after.put(name, after.Nodes[name].withFile("vm", v))},
		run: func(ctx context.Context, s *layer.Store) error {
			if err := a.writeAsVM(ctx, s, from, v); err != nil {
				return err
			}
			_, err := s.Commit(ctx, from, name, layer.CommitOptions{Move: true, Trust: true})
			return err
		},
	}, true
}

func (a *actor) writeAsVM(ctx context.Context, s *layer.Store, name string, v uint64) error {
	path, err := s.Attach(ctx, name, false)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(a.dir, "vm")
	if err != nil {
		return err
	}
	o := fsutil.MountOptions{Type: fsutil.XFS}
	if a.base == baseSize {
		o = fsutil.MountOptions{Type: fsutil.Ext4, Extra: []string{"nobarrier"}}
	}
	err = fsutil.Mount(ctx, path, dir, o)
	if err == nil {
		err = errors.Join(os.WriteFile(filepath.Join(dir, "vm"), text(v), 0o600), fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}))
	}
	return errors.Join(err, os.Remove(dir), s.Detach(ctx, name))
}

// load loads an image, of which layers may be there.
func (a *actor) load() (operation, bool) {
	k := a.rnd.IntN(len(a.archives))
	ar := a.archives[k]
	after := a.state.with(func(s state) {
		s.Refs[ar.ref] = k
		for name, n := range ar.nodes {
			if _, ok := s.Nodes[name]; !ok && !ar.shared {
				s.Nodes[name] = n
			}
		}
	})
	run := func(ctx context.Context, s *layer.Store) error {
		file, err := ar.file(a.dir)
		if err == nil {
			_, err = image.Load(ctx, s, file, image.LoadOptions{})
		}
		return err
	}
	return operation{text: "load " + ar.ref, run: run, states: []state{after}, mixed: true}, true
}

// aRef returns one of the references, which may be there or not.
func (a *actor) aRef() string {
	if a.rnd.IntN(3) == 0 {
		return fmt.Sprintf("%stag:%d", a.id, a.rnd.IntN(2))
	}
	return a.archives[a.rnd.IntN(len(a.archives))].ref
}

// tag gives an image a reference, which may have been another's.
func (a *actor) tag() (operation, bool) {
	from, to := a.aRef(), fmt.Sprintf("%stag:%d", a.id, a.rnd.IntN(2))
	text := fmt.Sprintf("tag %s %s", from, to)
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := image.Tag(ctx, s, from, to)
		return err
	}
	k, ok := a.state.Refs[from]
	if !ok {
		return refused(text, errs.ErrNotFound, run)
	}
	if old, ok := a.state.Refs[to]; ok && old != k && a.state.references(old) == 1 {
		return operation{}, false // an image without a reference would be left
	}
	return changes(text, a.state.with(func(s state) { s.Refs[to] = k }), run)
}

func (s state) references(k int) (n int) {
	for _, has := range s.Refs {
		if has == k {
			n++
		}
	}
	return n
}

// untag removes a reference, and with the last one the image and its layers down to the first that is used.
func (a *actor) untag() (operation, bool) {
	ref := a.aRef()
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := image.Remove(ctx, s, ref)
		return err
	}
	k, ok := a.state.Refs[ref]
	if !ok {
		return refused("image rm "+ref, errs.ErrNotFound, run)
	}
	after := a.state.with(func(s state) { delete(s.Refs, ref) })
	if after.references(k) == 0 && !a.archives[k].shared {
		for _, l := range slices.Backward(a.archives[k].layers) {
			if _, ok := after.Nodes[l]; !ok {
				continue
			}
			if after.busy(a.cast, l) != nil {
				break
			}
			after = after.with(func(s state) { delete(s.Nodes, l) })
		}
	}
	return operation{text: "image rm " + ref, run: run, states: []state{after}, mixed: true}, true
}

// pruneImages takes only images without a reference, of which there are none.
func (a *actor) pruneImages() (operation, bool) {
	return changes("image prune", a.state, func(ctx context.Context, s *layer.Store) error {
		gone, err := image.Prune(ctx, s, image.PruneOptions{})
		if err == nil && len(gone) > 0 {
			err = fmt.Errorf("pruned %v", gone)
		}
		return err
	})
}

// prune takes the layers that nothing uses.
func (a *actor) prune() (operation, bool) {
	after := a.state
	for progress := true; progress; {
		progress = false
		for name, n := range after.Nodes {
			if n.Kind == layer.KindLayer && after.busy(a.cast, name) == nil {
				after = after.with(func(s state) { delete(s.Nodes, name) })
				progress = true
			}
		}
	}
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := s.Prune(ctx, false)
		return err
	}
	return operation{text: "prune", run: run, states: []state{after}, mixed: true}, true
}

// check looks at a node.
func (a *actor) check() (operation, bool) {
	name := a.any()
	n, ok := a.state.Nodes[name]
	run := func(ctx context.Context, s *layer.Store) error {
		i, err := s.Inspect(ctx, name)
		if err != nil {
			return err
		}
		have, err := lookAt(ctx, s, i)
		if err == nil && !have.same(n, false) {
			err = fmt.Errorf("%s is %v, must be %v", name, have, n)
		}
		return err
	}
	if !ok {
		return refused("check "+name, errs.ErrNotFound, run)
	}
	return changes("check "+name, a.state, run)
}

// list looks at what is listed of the actor's nodes.
func (a *actor) list() (operation, bool) {
	return changes("list", a.state, func(ctx context.Context, s *layer.Store) error {
		infos, err := s.List(ctx)
		if err != nil {
			return err
		}
		have := map[string]bool{}
		for _, i := range infos {
			if n, ok := a.state.Nodes[i.Name]; a.owns(i.Name) && (!ok || n.Parent != i.Parent || n.Size != i.Size || n.Kind != i.Kind) {
				return fmt.Errorf("%s is listed as %+v", i.Name, i.Node)
			}
			have[i.Name] = true
		}
		for _, name := range slices.Sorted(maps.Keys(a.state.Nodes)) {
			if !have[name] {
				return fmt.Errorf("%s is not listed", name)
			}
		}
		return nil
	})
}

// fsck checks the file system of a node.
func (a *actor) fsck() (operation, bool) {
	name := a.any()
	n, ok := a.state.Nodes[name]
	if n.Raw != 0 {
		return operation{}, false
	}
	run := func(ctx context.Context, s *layer.Store) error {
		r, err := s.Fsck(ctx, name, false)
		if err == nil && !r.Clean {
			err = fmt.Errorf("%s is damaged: %s", name, r.Output)
		}
		return err
	}
	switch {
	case !ok:
		return refused("fsck "+name, errs.ErrNotFound, run)
	case n.Mounted:
		return refused("fsck "+name, errs.ErrBusy, run)
	}
	return changes("fsck "+name, a.state, run)
}
