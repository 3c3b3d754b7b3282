package differ_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/dmlayer/dmlayer/backend/differ"
	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) { testenv.Main(m) }

// host is a pool as containerd sees it, and its content store.
type host struct {
	t       *testing.T
	pool    *pooltest.Env
	store   *layer.Store
	sn      *snapshotter.Snapshotter
	content memory
	differ  *differ.Differ
}

func newHost(t *testing.T, spec pool.Spec) *host {
	t.Helper()
	h := &host{t: t, pool: pooltest.New(t, spec)}
	h.store = h.pool.Open(t)
	h.sn = snapshotter.New(h.store)
	h.content = memory{blobs: map[digest.Digest][]byte{}}
	h.differ = differ.New(h.store, h.content, nil)
	t.Cleanup(func() { h.clear() })
	return h
}

// clear removes all snapshots, children first.
func (h *host) clear() {
	for left := true; left; {
		left = false
		var keys []string
		must(h.t, h.sn.Walk(h.context(), func(_ context.Context, i snapshots.Info) error {
			keys = append(keys, i.Name)
			return nil
		}))
		for _, key := range keys {
			left = true
			_ = h.sn.Remove(h.context(), key) // a parent goes after its children
		}
	}
}

func (h *host) context() context.Context { return pooltest.Context(h.t) }

// memory is a content store of which only reading works.
type memory struct {
	content.Store
	blobs map[digest.Digest][]byte
}

type blob struct{ *bytes.Reader }

func (blob) Close() error { return nil }

func (m memory) ReaderAt(_ context.Context, desc ocispec.Descriptor) (content.ReaderAt, error) {
	data, ok := m.blobs[desc.Digest]
	if !ok {
		return nil, fmt.Errorf("content %s: %w", desc.Digest, errdefs.ErrNotFound)
	}
	return blob{bytes.NewReader(data)}, nil
}

// put stores a layer.
func (h *host) put(data []byte, mediaType string) ocispec.Descriptor {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	h.content.blobs[desc.Digest] = data
	return desc
}

func (h *host) prepare(key, parent string) []mount.Mount {
	h.t.Helper()
	m, err := h.sn.Prepare(h.context(), key, parent)
	must(h.t, err)
	return m
}

// mounted mounts snapshots while fn looks at them.
func (h *host) mounted(all [][]mount.Mount, fn func(dirs []string)) {
	h.t.Helper()
	var dirs []string
	for _, m := range all {
		dir := h.t.TempDir()
		must(h.t, mount.All(m, dir))
		defer func() { must(h.t, mount.UnmountAll(dir, 0)) }()
		dirs = append(dirs, dir)
	}
	fn(dirs)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func mustBe(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%v, want %v", err, class)
	}
}

// imageFile returns one of scripts/images.
func imageFile(t *testing.T, name string) string {
	t.Helper()
	testenv.Need(t, testenv.Images)
	cache, err := testenv.CacheDir()
	must(t, err)
	file := filepath.Join(cache, "images", name)
	if _, err := os.Stat(file); err != nil {
		t.Fatal(errors.Join(err, errors.New("scripts/images makes it")))
	}
	return file
}
