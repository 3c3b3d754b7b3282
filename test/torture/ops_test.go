package torture_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

// sideKind is the kind of the side files.
const sideKind = "torture"

func (a *actor) snapshot() (operation, bool) {
	name := a.aSnapshot()
	if a.rnd.IntN(5) == 0 {
		name = a.aDisk()
	}
	parent, from := a.aParent()
	o := layer.SnapshotOptions{Parent: parent}
	n := node{Kind: layer.KindSnapshot, Parent: parent, Size: from.Size, Files: from.Files, Raw: from.Raw}
	if a.rnd.IntN(4) == 0 {
		o.Size = from.Size + 8<<20
		n.Size = o.Size
	}
	text := fmt.Sprintf("snapshot %s of %q, size %d", name, parent, o.Size)
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := s.CreateSnapshot(ctx, name, o)
		return err
	}
	if _, ok := a.state.Nodes[name]; ok {
		return refused(text, errs.ErrExists, run)
	}
	return changes(text, a.state.put(name, n), run)
}

// filling makes a layer's content: what its parent has, a file and a side file.
func filling(file string, v uint64) func(context.Context, *layer.LayerWriter) error {
	return func(_ context.Context, w *layer.LayerWriter) error {
		blob, err := w.Blob(sideKind)
		if err != nil {
			return err
		}
		if _, err := blob.Write(text(v)); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(w.Root(), file), text(v), 0o600)
	}
}

// layerParent returns a parent for a layer, which must be one itself.
func (a *actor) layerParent() (string, node) {
	name, n := a.aParent()
	if n.Kind == layer.KindLayer && n.Raw == 0 {
		return name, n
	}
	return "", node{Size: a.base}
}

func (a *actor) fill() (operation, bool) {
	name, v := a.aLayer(), a.number()
	parent, from := a.layerParent()
	text := fmt.Sprintf("layer %s on %q with %x", name, parent, v)
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := s.CreateLayer(ctx, name, layer.LayerOptions{Parent: parent}, filling("own", v))
		return err
	}
	if _, ok := a.state.Nodes[name]; ok {
		return refused(text, errs.ErrExists, run)
	}
	n := from.withFile("own", v)
	n.Kind, n.Parent, n.Side, n.Label = layer.KindLayer, parent, v, ""
	return changes(text, a.state.put(name, n), run)
}

// chain makes the layers of the names that are free, one on the other.
func (a *actor) chain() (operation, bool) {
	parent, from := a.layerParent()
	o := operation{text: fmt.Sprintf("chain on %q:", parent), mixed: true}
	var todo []layer.NewLayer
	after, below := a.state, parent
	for i := range layers {
		name, v := fmt.Sprintf("%s-l%d", a.id, i), a.number()
		if _, ok := a.state.Nodes[name]; ok {
			continue
		}
		l := layer.NewLayer{Name: name, Fill: filling("own", v)}
		l.Options.Parent = parent
		todo = append(todo, l)
		from = from.withFile("own", v)
		from.Kind, from.Parent, from.Side, from.Label = layer.KindLayer, below, v, ""
		after, below = after.put(name, from), name
		o.states = append(o.states, after)
		o.text += fmt.Sprintf(" %s with %x", name, v)
	}
	o.run = func(ctx context.Context, s *layer.Store) error {
		made, err := s.CreateLayers(ctx, todo)
		if err == nil && len(made) != len(todo) {
			err = fmt.Errorf("the chain ended after %d of %d layers", len(made), len(todo))
		}
		return err
	}
	return o, len(todo) > 1
}

// write writes a file whose writer is told that it is safe.
func (a *actor) write() (operation, bool) {
	name, file, v := a.aSnapshot(), fmt.Sprintf("f%d", a.rnd.IntN(3)), a.number()
	n, ok := a.state.Nodes[name]
	text := fmt.Sprintf("write %x to %s of %s", v, file, name)
	run := func(ctx context.Context, s *layer.Store) error {
		m, err := s.Mount(ctx, name, "", layer.MountOptions{})
		if err != nil {
			return err
		}
		err = writeSafely(m.Dir, file, v)
		if !n.Mounted {
			err = errors.Join(err, s.Unmount(ctx, name))
		}
		return err
	}
	switch {
	case !ok:
		return refused(text, errs.ErrNotFound, run)
	case n.Raw != 0:
		return refused(text, errs.ErrDamaged, run)
	}
	return changes(text, a.state.put(name, n.withFile(file, v)), run)
}

func writeSafely(dir, file string, v uint64) error {
	temp := filepath.Join(dir, "."+file)
	if err := os.WriteFile(temp, text(v), 0o600); err != nil {
		return err
	}
	if err := fsutil.SyncFS(dir); err != nil {
		return err
	}
	return errors.Join(os.Rename(temp, filepath.Join(dir, file)), fsutil.SyncFS(dir))
}

func (a *actor) commit() (operation, bool) {
	from, name := a.any(), a.aLayer()
	n, ok := a.state.Nodes[from]
	text := fmt.Sprintf("commit %s to %s", from, name)
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := s.Commit(ctx, from, name, layer.CommitOptions{})
		return err
	}
	_, taken := a.state.Nodes[name]
	switch {
	case !ok:
		return refused(text, errs.ErrNotFound, run)
	case n.Kind == layer.KindLayer:
		return refused(text, errs.ErrInvalid, run)
	case taken:
		return refused(text, errs.ErrExists, run)
	case n.Raw != 0:
		return refused(text, errs.ErrDamaged, run)
	}
	n.Kind, n.Mounted, n.Label, n.Side = layer.KindLayer, false, "", 0
	return changes(text, a.state.put(name, n), run)
}

// move turns a snapshot that is not mounted into a layer.
func (a *actor) move() (operation, bool) {
	from, name := a.any(), a.aLayer()
	n, ok := a.state.Nodes[from]
	if _, taken := a.state.Nodes[name]; !ok || taken || n.Mounted || n.Kind != layer.KindSnapshot || n.Raw != 0 {
		return operation{}, false
	}
	run := func(ctx context.Context, s *layer.Store) error {
		_, err := s.Commit(ctx, from, name, layer.CommitOptions{Move: true})
		return err
	}
	return changes(fmt.Sprintf("commit --move %s to %s", from, name), a.moved(from, name), run)
}

func (a *actor) moved(from, name string) state {
	return a.state.with(func(s state) {
		s.rename(from, name)
		n := s.Nodes[name]
		n.Kind = layer.KindLayer
		s.Nodes[name] = n
	})
}

func (a *actor) reset() (operation, bool) {
	name, to := a.any(), ""
	n, ok := a.state.Nodes[name]
	if a.rnd.IntN(2) == 0 {
		to = a.aLayer()
	}
	text := fmt.Sprintf("reset %s to %q", name, to)
	run := func(ctx context.Context, s *layer.Store) error { return s.Reset(ctx, name, to) }
	origin := to
	if to == "" {
		origin = n.Parent
	}
	from, there := a.state.Nodes[origin]
	if shared, ok := a.shared(origin); ok {
		from, there = shared, true
	}
	if origin == "" {
		from, there = node{Size: a.base}, true
	}
	switch {
	case !ok:
		return refused(text, errs.ErrNotFound, run)
	case n.Kind == layer.KindLayer:
		return refused(text, errs.ErrInvalid, run)
	case !there:
		return refused(text, errs.ErrNotFound, run)
	case to != "" && a.state.descends(to, name):
		return refused(text, errs.ErrInvalid, run)
	case n.Mounted:
		return refused(text, errs.ErrBusy, run)
	}
	n.Parent, n.Files, n.Raw, n.Size = origin, from.Files, from.Raw, max(n.Size, from.Size)
	return changes(text, a.state.put(name, n), run)
}

func (a *actor) resize() (operation, bool) {
	name := a.any()
	n, ok := a.state.Nodes[name]
	size := n.Size + int64(a.rnd.IntN(3)-1)*(16<<20)
	if !ok {
		size = a.base
	}
	if size > 3*a.base || size < 32<<20 {
		return operation{}, false
	}
	text := fmt.Sprintf("resize %s to %d", name, size)
	run := func(ctx context.Context, s *layer.Store) error { return s.Resize(ctx, name, size) }
	switch {
	case !ok:
		return refused(text, errs.ErrNotFound, run)
	case n.Kind == layer.KindLayer, size < n.Size:
		return refused(text, errs.ErrInvalid, run)
	}
	n.Size = size
	return changes(text, a.state.put(name, n), run)
}

func (a *actor) rename() (operation, bool) {
	name, to := a.aSnapshot(), a.aSnapshot()
	n, ok := a.state.Nodes[name]
	if name == to || n.Mounted {
		return operation{}, false
	}
	text := fmt.Sprintf("rename %s to %s", name, to)
	run := func(ctx context.Context, s *layer.Store) error { return s.Rename(ctx, name, to) }
	_, taken := a.state.Nodes[to]
	switch {
	case !ok:
		return refused(text, errs.ErrNotFound, run)
	case taken:
		return refused(text, errs.ErrExists, run)
	}
	return changes(text, a.state.with(func(s state) { s.rename(name, to) }), run)
}

func (a *actor) label() (operation, bool) {
	name, value := a.any(), fmt.Sprint(a.rnd.IntN(1000))
	n, ok := a.state.Nodes[name]
	text := fmt.Sprintf("label %s l=%s", name, value)
	run := func(ctx context.Context, s *layer.Store) error {
		return s.Label(ctx, name, map[string]string{"l": value}, nil)
	}
	if !ok {
		return refused(text, errs.ErrNotFound, run)
	}
	n.Label = value
	return changes(text, a.state.put(name, n), run)
}

func (a *actor) remove() (operation, bool) {
	name := a.any()
	text := "remove " + name
	run := func(ctx context.Context, s *layer.Store) error { return s.Remove(ctx, name) }
	if _, ok := a.state.Nodes[name]; !ok {
		return refused(text, errs.ErrNotFound, run)
	}
	if err := a.state.busy(a.cast, name); err != nil {
		return refused(text, err, run)
	}
	return changes(text, a.state.with(func(s state) { delete(s.Nodes, name) }), run)
}
