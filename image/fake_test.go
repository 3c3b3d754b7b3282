package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/continuity/fs"

	"github.com/dmlayer/dmlayer/layer"
)

// fakeStore keeps layers as directories, with the rules of layer.Store that this package relies on.
type fakeStore struct {
	dir string

	mu     sync.Mutex
	chains map[string]*sync.Mutex
	layers map[string]*fakeLayer
	docs   map[[2]string]layer.Document
	busy   map[string]bool // somebody mounts it
	fills  []string        // names in the order of filling

	forbidDevices bool

	// Hooks for races; called without the lock.
	beforeCreate, beforeUpdate func()
}

type fakeLayer struct {
	node  layer.Node
	root  string
	blobs map[string][]byte
}

func newFakeStore(t *testing.T) *fakeStore {
	return &fakeStore{
		dir: t.TempDir(), chains: map[string]*sync.Mutex{}, layers: map[string]*fakeLayer{},
		docs: map[[2]string]layer.Document{}, busy: map[string]bool{},
	}
}

type fakeWriter struct {
	s     *fakeStore
	root  string
	blobs map[string]*bytes.Buffer
	attrs map[string]string
}

func (w *fakeWriter) SetAttr(key, value string) { w.attrs[key] = value }

func (w *fakeWriter) DevicesForbidden() bool { return w.s.forbidDevices }

func (w *fakeWriter) Root() string { return w.root }

func (w *fakeWriter) Blob(kind string) (io.WriteCloser, error) {
	w.blobs[kind] = &bytes.Buffer{}
	return struct {
		io.Writer
		io.Closer
	}{w.blobs[kind], io.NopCloser(nil)}, nil
}

func (s *fakeStore) chain(name string) *sync.Mutex {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.chains[name] == nil {
		s.chains[name] = &sync.Mutex{}
	}
	return s.chains[name]
}

func (s *fakeStore) CreateLayers(ctx context.Context, layers []newLayer) ([]layer.Node, error) {
	var made []layer.Node
	for i, l := range layers {
		chain := s.chain(l.name)
		if i == 0 {
			chain.Lock()
		} else if !chain.TryLock() {
			return made, nil
		} else {
			l.o.Parent = layers[i-1].name
		}
		n, err := s.createLayer(ctx, l)
		chain.Unlock()
		if i > 0 && errors.Is(err, layer.ErrExists) {
			return made, nil
		}
		if err != nil {
			return made, err
		}
		made = append(made, n)
	}
	return made, nil
}

func (s *fakeStore) createLayer(ctx context.Context, l newLayer) (layer.Node, error) {
	name, o := l.name, l.o
	if s.beforeCreate != nil {
		s.beforeCreate()
	}
	s.mu.Lock()
	if s.layers[name] != nil {
		s.mu.Unlock()
		return layer.Node{}, fmt.Errorf("create layer %q: %w", name, layer.ErrExists)
	}
	parent := s.layers[o.Parent]
	if o.Parent != "" && parent == nil {
		s.mu.Unlock()
		return layer.Node{}, fmt.Errorf("create layer %q: parent %q: %w", name, o.Parent, layer.ErrNotFound)
	}
	s.fills = append(s.fills, name)
	s.mu.Unlock()
	root, err := os.MkdirTemp(s.dir, "layer-")
	if err != nil {
		return layer.Node{}, err
	}
	if parent != nil {
		if err := fs.CopyDir(root, parent.root); err != nil {
			return layer.Node{}, err
		}
	}
	w := &fakeWriter{s, root, map[string]*bytes.Buffer{}, maps.Clone(o.Attrs)}
	err = l.fill(ctx, w)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && o.Parent != "" && s.layers[o.Parent] == nil {
		err = fmt.Errorf("parent: %w", layer.ErrNotFound)
	}
	if err != nil {
		os.RemoveAll(root)
		return layer.Node{}, fmt.Errorf("create layer %q: %w", name, err)
	}
	made := &fakeLayer{
		node: layer.Node{Name: name, Kind: layer.KindLayer, Parent: o.Parent, Created: time.Now(), Attrs: w.attrs},
		root: root, blobs: map[string][]byte{},
	}
	for kind, b := range w.blobs {
		made.blobs[kind] = b.Bytes()
	}
	s.layers[name] = made
	return made.node, nil
}

func (s *fakeStore) Get(_ context.Context, name string) (layer.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[name]; l != nil {
		return l.node, nil
	}
	return layer.Node{}, fmt.Errorf("node %q: %w", name, layer.ErrNotFound)
}

func (s *fakeStore) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	l := s.layers[name]
	if l == nil {
		return fmt.Errorf("remove %q: %w", name, layer.ErrNotFound)
	}
	for _, c := range s.layers {
		if c.node.Parent == name {
			return fmt.Errorf("remove %q: parent of %q: %w", name, c.node.Name, layer.ErrBusy)
		}
	}
	for _, d := range s.docs {
		if slices.Contains(d.Layers, name) {
			return fmt.Errorf("remove %q: used by %s: %w", name, d.Key, layer.ErrBusy)
		}
	}
	if s.busy[name] {
		return fmt.Errorf("remove %q: mounted: %w", name, layer.ErrBusy)
	}
	delete(s.layers, name)
	return os.RemoveAll(l.root)
}

func (s *fakeStore) OpenBlob(_ context.Context, name, kind string) (io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if l := s.layers[name]; l != nil && l.blobs[kind] != nil {
		return io.NopCloser(bytes.NewReader(l.blobs[kind])), nil
	}
	return nil, fmt.Errorf("side file %q of %q: %w", kind, name, layer.ErrNotFound)
}

func (s *fakeStore) View(ctx context.Context, names []string, fn func(ctx context.Context, roots []string) error) error {
	var roots []string
	for _, name := range names {
		roots = append(roots, s.root(name))
	}
	return fn(ctx, roots)
}

func (s *fakeStore) root(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.layers[name].root
}

func (s *fakeStore) Documents(_ context.Context, kind string) ([]layer.Document, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fakeTx{s, s.docs}.List(kind)
}

func (s *fakeStore) Document(_ context.Context, kind, key string) (layer.Document, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fakeTx{s, s.docs}.Get(kind, key)
}

func (s *fakeStore) UpdateDocuments(ctx context.Context, fn func(tx documentTx) error) error {
	if s.beforeUpdate != nil {
		s.beforeUpdate()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	docs := maps.Clone(s.docs)
	if err := fn(fakeTx{s, docs}); err != nil {
		return err
	}
	s.docs = docs
	return nil
}

type fakeTx struct {
	s    *fakeStore
	docs map[[2]string]layer.Document
}

func (tx fakeTx) Get(kind, key string) (layer.Document, error) {
	d, ok := tx.docs[[2]string{kind, key}]
	if !ok {
		return d, fmt.Errorf("%s %q: %w", kind, key, layer.ErrNotFound)
	}
	return d, nil
}

func (tx fakeTx) List(kind string) ([]layer.Document, error) {
	var all []layer.Document
	for k, d := range tx.docs {
		if k[0] == kind {
			all = append(all, d)
		}
	}
	slices.SortFunc(all, func(a, b layer.Document) int { return strings.Compare(a.Key, b.Key) })
	return all, nil
}

func (tx fakeTx) Put(d layer.Document) error {
	for _, name := range d.Layers {
		if tx.s.layers[name] == nil {
			return fmt.Errorf("%s %q: node %q: %w", d.Kind, d.Key, name, layer.ErrNotFound)
		}
	}
	var compact bytes.Buffer // as a store that marshals the document does
	if err := json.Compact(&compact, d.Data); err != nil {
		return err
	}
	d.Data = compact.Bytes()
	tx.docs[[2]string{d.Kind, d.Key}] = d
	return nil
}

func (tx fakeTx) Delete(kind, key string) error {
	delete(tx.docs, [2]string{kind, key})
	return nil
}

// names lists the layers.
func (s *fakeStore) names() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Sorted(maps.Keys(s.layers))
}

// checkEmpty fails where anything is left in the store or in its directory.
func (s *fakeStore) checkEmpty(t *testing.T) {
	t.Helper()
	if names := s.names(); len(names) > 0 || len(s.docs) > 0 {
		t.Errorf("left: layers %q, documents %v", names, slices.Collect(maps.Keys(s.docs)))
	}
	entries, err := os.ReadDir(s.dir)
	if err != nil || len(entries) > 0 {
		t.Errorf("left in the directory: %d entries (%v)", len(entries), err)
	}
}

// content reads a file of a layer; "" if it is not there.
func (s *fakeStore) content(t *testing.T, name, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.root(name), file))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(data)
}
