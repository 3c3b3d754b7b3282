package layer_test

import (
	"context"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/logwrites"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// The side files of a removed layer do not come back once its tombstone is dropped: no record names them then.
func TestPowerCutAfterRemoval(t *testing.T) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{disk}}
	must(t, pool.Create(pooltest.Context(t), dirs, smallPool))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name) }) // of a test that failed
	st.mark("ack-create")
	files := map[string]string{"a": "1"}
	there := contents{"l": "a=1 (side file)"}
	create := func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
		_, err := s.CreateLayer(ctx, "l", layer.LayerOptions{}, fillWith(files))
		return err
	}
	remove := func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error { return s.Remove(ctx, "l") }
	// What drops the tombstone, and syncs nothing else.
	write := func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
		return s.UpdateDocuments(ctx, func(tx *layer.DocTx) error {
			return tx.Put(layer.Document{Kind: "test", Key: "k", Data: []byte("{}")})
		})
	}
	steps := []step{{"make", create, there}, {"remove", remove, contents{}}, {"write", write, contents{}}}
	st.record(t, steps)
	must(t, disk.Remove())
	r := disk.Replay()
	for i, e := range r.Entries {
		if count, where := acked(r, i+1); count >= 2 && e.Flags&(logwrites.Flush|logwrites.FUA) != 0 {
			r.CutAt(i+1, func() { st.check(t, where, count, steps) })
		}
	}
}
