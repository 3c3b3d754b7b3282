package snapshotter_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

const ref = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// mustBe checks the class of an error.
func mustBe(t testing.TB, err, class error) {
	t.Helper()
	if !errors.Is(err, class) {
		t.Errorf("%v, want %v", err, class)
	}
}

// with mounts a snapshot as containerd does while fn runs.
func with(t testing.TB, mounts []mount.Mount, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	must(t, mount.All(mounts, dir))
	defer func() { must(t, mount.UnmountAll(dir, 0)) }()
	fn(dir)
}

// committed makes a committed snapshot with one file.
func committed(t testing.TB, s snapshots.Snapshotter, name, parent string, labels map[string]string) {
	t.Helper()
	ctx := pooltest.Context(t)
	m, err := s.Prepare(ctx, name+"-active", parent)
	must(t, err)
	with(t, m, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600)) })
	must(t, s.Commit(ctx, name, name+"-active", snapshots.WithLabels(labels)))
}

func open(t testing.TB, spec pool.Spec) (*pooltest.Env, *layer.Store, *snapshotter.Snapshotter) {
	t.Helper()
	e := pooltest.New(t, spec)
	store := e.Open(t)
	s := snapshotter.New(store)
	t.Cleanup(func() { must(t, removeAll(pooltest.Context(t), s)) })
	return e, store, s
}

// count returns how many nodes and devices of nodes there are.
func count(t testing.TB, s *layer.Store) (nodes, active int) {
	t.Helper()
	all, err := s.List(pooltest.Context(t))
	must(t, err)
	for _, i := range all {
		if i.State != layer.StateInactive {
			active++
		}
	}
	return len(all), active
}

func TestViewsShareTheLayer(t *testing.T) {
	_, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	committed(t, s, "base", "", nil)
	one, err := s.View(ctx, "one", "base")
	must(t, err)
	two, err := s.View(ctx, "two", "base")
	must(t, err)
	if nodes, active := count(t, store); nodes != 1 || active != 1 || one[0].Source != two[0].Source || !one[0].ReadOnly() {
		t.Errorf("%d nodes, %d active; %+v and %+v", nodes, active, one, two)
	}
	must(t, s.Remove(ctx, "one"))
	with(t, two, func(dir string) {
		if _, err := os.Stat(filepath.Join(dir, "base")); err != nil {
			t.Error(err)
		}
	})
	mustBe(t, s.Commit(ctx, "c", "two"), errdefs.ErrFailedPrecondition)
	must(t, s.Remove(ctx, "two"))
	if _, active := count(t, store); active != 0 {
		t.Errorf("%d devices are left", active)
	}
}

func TestSizes(t *testing.T) {
	_, store, s := open(t, pool.Spec{BaseSize: 1 << 30})
	ctx := pooltest.Context(t)
	committed(t, s, "base", "", nil)
	for label, want := range map[string]int64{"1342177280": 1280 << 20, "1342177999": 1280<<20 + 4096, "1048576": 1 << 30} {
		key := "size " + label
		m, err := s.Prepare(ctx, key, "base", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: label}))
		must(t, err)
		n, err := store.Get(ctx, filepath.Base(m[0].Source))
		must(t, err)
		if n.Size != want || n.Attrs["containerd.key"] != key {
			t.Errorf("%s: node %+v, want %d bytes", label, n, want)
		}
		with(t, m, func(dir string) {
			if size, err := pooltest.FSSize(dir); err != nil || size < want*9/10 || size > want {
				t.Errorf("%s: file system of %d bytes, %v", label, size, err)
			}
		})
	}
	for _, label := range []string{"", "-1", "1G", "99999999999999999999", "9223372036854775807"} {
		_, err := s.Prepare(ctx, "odd", "base", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: label}))
		mustBe(t, err, errdefs.ErrInvalidArgument)
	}
}

// A layer of which a repair of the pool lost a part is unpacked again, and nothing is made of a snapshot that is one.
func TestLostLayer(t *testing.T) {
	e, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	name := "sha256-" + strings.TrimPrefix(ref, "sha256:")
	_, err := store.CreateLayer(ctx, name, layer.LayerOptions{Attrs: map[string]string{"image.chainID": ref}}, func(context.Context, *layer.LayerWriter) error { return nil })
	must(t, err)
	must(t, e.MarkLost(ctx, name))
	_, err = s.Prepare(ctx, "extract", "", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref}))
	must(t, err)
	must(t, s.Commit(ctx, ref, "extract"))
	must(t, store.Remove(ctx, name))
	i := slices.IndexFunc(nodesOf(t, store), func(n layer.Info) bool { return n.Kind == layer.KindLayer })
	lost := nodesOf(t, store)[i].Name
	must(t, e.MarkLost(ctx, lost))
	if _, err := s.Prepare(ctx, "c", ref); err == nil || !strings.Contains(err.Error(), "lost 3 of 17 blocks") {
		t.Errorf("prepared on it: %v", err)
	}
	must(t, removeAll(ctx, s))
}

func nodesOf(t testing.TB, s *layer.Store) []layer.Info {
	t.Helper()
	all, err := s.List(pooltest.Context(t))
	must(t, err)
	return all
}

// TestKnownLayers prepares what the pool has, with and without parent, in several ways.
func TestKnownLayers(t *testing.T) {
	_, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	wants := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref})
	name := "sha256-" + strings.TrimPrefix(ref, "sha256:")
	_, err := store.CreateLayer(ctx, name, layer.LayerOptions{Attrs: map[string]string{"image.chainID": ref}}, func(context.Context, *layer.LayerWriter) error { return nil })
	must(t, err)
	must(t, store.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
		return tx.Put(layer.Document{Kind: "image", Key: "x", Layers: []string{name}, Data: []byte("{}")})
	}))

	_, err = s.Prepare(ctx, "extract-1", "", wants)
	mustBe(t, err, errdefs.ErrAlreadyExists)
	found := walk(t, s, `labels."containerd.io/snapshot.ref"==`+ref+`,parent==""`)
	if !slices.Equal(found, []string{ref}) {
		t.Errorf("found %q", found)
	}
	_, err = s.Prepare(ctx, "extract-2", "", wants)
	mustBe(t, err, errdefs.ErrAlreadyExists)
	committed(t, s, "other", "", nil)
	_, err = s.Prepare(ctx, "extract-3", "other", wants) // the same chain on a key of another name
	mustBe(t, err, errdefs.ErrAlreadyExists)
	if found := walk(t, s, `labels."containerd.io/snapshot.ref"==`+ref+`,parent=="other"`); !slices.Equal(found, []string{"extract-3"}) {
		t.Errorf("found %q", found)
	}
	if nodes, _ := count(t, store); nodes != 2 {
		t.Errorf("%d nodes", nodes)
	}
	must(t, removeAll(ctx, s))
	if nodes, _ := count(t, store); nodes != 1 {
		t.Errorf("%d nodes are left of the one that an image needs", nodes)
	}

	// A client that prepares layers without their parents gets it read-only.
	committed(t, s, "other", "", nil)
	m, err := s.Prepare(ctx, "staged", "", wants, snapshots.WithLabels(map[string]string{"containerd.io/snapshot/parent-chain-id": "sha256:2"}))
	must(t, err)
	if !m[0].ReadOnly() {
		t.Errorf("not staged: %+v", m)
	}
	mustBe(t, s.Commit(ctx, "c", "staged", snapshots.WithParent("nobody")), errdefs.ErrNotFound)
	must(t, s.Commit(ctx, "c", "staged", wants, snapshots.WithParent("other")))
	if i, err := s.Stat(ctx, "c"); err != nil || i.Kind != snapshots.KindCommitted || i.Parent != "other" {
		t.Errorf("%+v, %v", i, err)
	}
	if nodes, active := count(t, store); nodes != 2 || active != 0 {
		t.Errorf("%d nodes, %d active", nodes, active)
	}
	must(t, removeAll(ctx, s))
	must(t, store.UpdateDocuments(ctx, func(tx *layer.DocTx) error { return tx.Delete("image", "x") }))
}

// TestWalkByReference finds snapshots of every kind by a label, as without an index.
func TestWalkByReference(t *testing.T) {
	_, _, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	wants := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref})
	_, err := s.Prepare(ctx, "active", "", wants)
	must(t, err)
	committed(t, s, "base", "", nil)
	_, err = s.View(ctx, "view", "base", wants)
	must(t, err)
	filter := `labels."containerd.io/snapshot.ref"==` + ref
	for f, want := range map[string][]string{filter: {"active", "view"}, filter + ",kind==view": {"view"}, "kind==active," + filter: {"active"}} {
		found := walk(t, s, f)
		if slices.Sort(found); !slices.Equal(found, want) {
			t.Errorf("%s: %q, want %q", f, found, want)
		}
	}
	must(t, s.Commit(ctx, "c", "active", wants)) // it was not known to be there while it was made
	if found := walk(t, s, filter); len(found) != 2 || !slices.Contains(found, "c") {
		t.Errorf("found %q", found)
	}
	must(t, s.Remove(ctx, "c"))
	must(t, s.Remove(ctx, "view"))
	if found := walk(t, s, filter); len(found) != 0 {
		t.Errorf("left is %q", found)
	}
}

func walk(t testing.TB, s snapshots.Snapshotter, filters ...string) []string {
	t.Helper()
	var names []string
	must(t, s.Walk(pooltest.Context(t), func(_ context.Context, i snapshots.Info) error {
		names = append(names, i.Name)
		return nil
	}, filters...))
	return names
}

// TestUsage counts what a snapshot alone has, overwrites included, and reads the metadata once for all.
func TestUsage(t *testing.T) {
	_, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	m, err := s.Prepare(ctx, "a", "")
	must(t, err)
	const big = "big"
	with(t, m, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, big), make([]byte, 4<<20), 0o600)) })
	must(t, s.Commit(ctx, "base", "a"))
	m, err = s.Prepare(ctx, "over", "base")
	must(t, err)
	_, err = s.Prepare(ctx, "idle", "base")
	must(t, err)
	with(t, m, func(dir string) {
		f, err := os.OpenFile(filepath.Join(dir, big), os.O_WRONLY, 0)
		must(t, err)
		_, err = f.Write(slices.Repeat([]byte{1}, 1<<20))
		must(t, errors.Join(err, f.Close()))
	})
	of := func(key string) int64 {
		u, err := s.Usage(ctx, key)
		must(t, err)
		return u.Size
	}
	if base, over, idle := of("base"), of("over"), of("idle"); base < 4<<20 || over < 1<<20 || over > 3<<20 || idle > over {
		t.Errorf("base %d, overwritten %d, idle %d", base, over, idle)
	}
	before := store.Cost()
	for range 20 {
		of("base")
		of("over")
	}
	if now := store.Cost(); now.Messages != before.Messages {
		t.Errorf("the metadata was read again though nothing had changed: %d messages", now.Messages-before.Messages)
	}
	_, err = s.Usage(ctx, "nobody")
	mustBe(t, err, errdefs.ErrNotFound)
	// Who waits for somebody else's reading may give up.
	release := s.Measuring()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	_, err = s.Usage(ended, "base")
	mustBe(t, err, context.Canceled)
	release()
}

// TestMountedAtTheEnd commits and removes what is mounted still.
func TestMountedAtTheEnd(t *testing.T) {
	_, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	m, err := s.Prepare(ctx, "a", "")
	must(t, err)
	with(t, m, func(dir string) {
		must(t, os.WriteFile(filepath.Join(dir, "f"), []byte("kept"), 0o600))
		must(t, s.Commit(ctx, "c", "a"))
		must(t, os.WriteFile(filepath.Join(dir, "late"), nil, 0o600))
	})
	m, err = s.Prepare(ctx, "b", "c")
	must(t, err)
	with(t, m, func(dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 || entries[0].Name() != "f" {
			t.Errorf("the committed snapshot has %v, %v", entries, err)
		}
		must(t, s.Remove(ctx, "b"))
		must(t, os.WriteFile(filepath.Join(dir, "w"), []byte("alive"), 0o600))
	})
	must(t, s.Cleanup(ctx))
	if nodes, active := count(t, store); nodes != 1 || active != 0 {
		t.Errorf("%d nodes, %d active", nodes, active)
	}
}

// TestFoundAgain takes what a reboot takes: claims and devices, not keys.
func TestFoundAgain(t *testing.T) {
	e, store, s := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	committed(t, s, "base", "", nil)
	m, err := s.Prepare(ctx, "a", "base")
	must(t, err)
	with(t, m, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, "w"), []byte("x"), 0o600)) })
	_, err = s.View(ctx, "v", "base")
	must(t, err)
	all, err := store.List(ctx)
	must(t, err)
	for _, i := range all {
		for _, claim := range i.Claims {
			must(t, store.Deactivate(ctx, i.Name, claim))
		}
	}
	if _, active := count(t, store); active != 0 {
		t.Fatalf("%d devices are left", active)
	}
	must(t, pool.Stop(ctx, e.Dirs, e.Name))

	other := snapshotter.New(e.Open(t))
	for key, file := range map[string]string{"a": "w", "v": "base"} {
		m, err := other.Mounts(ctx, key)
		must(t, err)
		with(t, m, func(dir string) {
			if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
				t.Errorf("%s: %v", key, err)
			}
		})
	}
}
