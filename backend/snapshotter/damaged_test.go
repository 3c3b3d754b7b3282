package snapshotter_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"

	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// damage makes the record of a snapshot one that cannot be read.
func damage(t testing.TB, s *layer.Store, key string) {
	t.Helper()
	must(t, s.UpdateDocuments(pooltest.Context(t), func(tx *layer.DocTx) error {
		d, err := tx.Get("containerd", key)
		if err != nil {
			return err
		}
		d.Data = json.RawMessage("[]")
		return tx.Put(d)
	}))
}

// A record that cannot be read is listed with what is known of it, so that lists and garbage collection go on with the others; nothing is made of it; and it can be
// removed, as a parent not before its children.
func TestDamagedRecord(t *testing.T) {
	_, store, local := open(t, pool.Spec{})
	ctx := pooltest.Context(t)
	client := dialed(t, store)
	committed(t, client, "base", "", nil)
	committed(t, client, "middle", "base", map[string]string{snapshots.LabelSnapshotRef: ref})
	committed(t, client, "top", "middle", nil)
	_, err := client.Prepare(ctx, "web", "top")
	must(t, err)
	_, err = client.View(ctx, "look", "top")
	must(t, err)
	keys := []string{"base", "look", "middle", "top", "web"}
	for _, key := range []string{"middle", "web", "look"} {
		damage(t, store, key)
	}
	fresh := snapshotter.New(store) // which remembers nothing
	for _, s := range []snapshots.Snapshotter{client, local, fresh} {
		found := walk(t, s)
		slices.Sort(found)
		if !slices.Equal(found, keys) {
			t.Errorf("listed %q", found)
		}
		if found := walk(t, s, `labels."dmlayer/damaged"`); len(found) != 3 {
			t.Errorf("listed as damaged: %q", found)
		}
		if found := walk(t, s, "name==web"); !slices.Equal(found, []string{"web"}) {
			t.Errorf("listed by name: %q", found)
		}
		if found := walk(t, s, `labels."`+snapshots.LabelSnapshotRef+`"==`+ref); len(found) > 0 {
			t.Errorf("listed by a label that nobody knows: %q", found)
		}
		info, err := s.Stat(ctx, "middle")
		if err != nil || info.Name != "middle" || info.Parent != "" || !strings.Contains(info.Labels["dmlayer/damaged"], "record of snapshot") {
			t.Errorf("told %+v, %v", info, err)
		}
		_, err = s.Mounts(ctx, "web")
		mustBe(t, err, errdefs.ErrDataLoss)
		_, err = s.Usage(ctx, "web")
		mustBe(t, err, errdefs.ErrDataLoss)
		_, err = s.Update(ctx, snapshots.Info{Name: "middle"}, "labels.a")
		mustBe(t, err, errdefs.ErrDataLoss)
		mustBe(t, s.Remove(ctx, "middle"), errdefs.ErrFailedPrecondition)
		mustBe(t, s.Remove(ctx, "base"), errdefs.ErrFailedPrecondition)
	}
	for _, s := range []snapshots.Snapshotter{client, fresh} {
		_, err := s.Prepare(ctx, "new", "middle")
		mustBe(t, err, errdefs.ErrDataLoss)
		_, err = s.View(ctx, "new", "middle")
		mustBe(t, err, errdefs.ErrDataLoss)
		mustBe(t, s.Commit(ctx, "new", "web"), errdefs.ErrDataLoss)
	}
	// A layer that another record says it is can be unpacked anew.
	_, err = client.Prepare(ctx, "again", "base", snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotRef: ref}))
	must(t, err)
	for _, key := range []string{"again", "web", "look", "top", "middle", "base"} {
		must(t, client.Remove(ctx, key))
		mustBe(t, client.Remove(ctx, key), errdefs.ErrNotFound)
	}
	must(t, store.ViewDocuments(ctx, func(tx *layer.DocTx) error {
		for _, kind := range []string{"containerd", "containerd-child", "containerd-ref"} {
			if docs, err := tx.List(kind); len(docs) > 0 || err != nil {
				t.Errorf("left: %+v, %v", docs, err)
			}
		}
		return nil
	}))
	if nodes, active := count(t, store); nodes != 0 || active != 0 {
		t.Errorf("left: %d nodes, %d active", nodes, active)
	}
}

// The size that a view asks for is looked at as that of any snapshot: a view of nothing has it, any other one is as large as what it shows.
func TestViewSizes(t *testing.T) {
	_, store, s := open(t, pool.Spec{BaseSize: 64 << 20})
	ctx := pooltest.Context(t)
	committed(t, s, "base", "", nil)
	sized := func(size string) snapshots.Opt {
		return snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotMaxSize: size})
	}
	for _, parent := range []string{"base", ""} {
		for _, size := range []string{"", "-1", "1G", "99999999999999999999"} {
			_, err := s.View(ctx, "odd", parent, sized(size))
			mustBe(t, err, errdefs.ErrInvalidArgument)
		}
		if found := walk(t, s); !slices.Equal(found, []string{"base"}) {
			t.Errorf("made %q", found)
		}
	}
	_, err := s.View(ctx, "of base", "base", sized("134217728"))
	must(t, err)
	_, err = s.View(ctx, "of nothing", "", sized("134217728"))
	must(t, err)
	sizes := map[string]int64{}
	for _, n := range nodesOf(t, store) {
		sizes[n.Attrs["containerd.key"]] = n.Size
	}
	if len(sizes) != 2 || sizes["base"] != 64<<20 || sizes["of nothing"] != 128<<20 {
		t.Errorf("sizes %v", sizes)
	}
}
