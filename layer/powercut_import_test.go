package layer_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/logwrites"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// loseRecords leaves of a pool's records what is in the pool.
func loseRecords(e *pooltest.Env) error {
	err := os.Remove(e.Store())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, os.RemoveAll(filepath.Join(e.Dirs.Root, "backups")))
}

// importHere imports a pool in its place, whatever the copy says.
func importHere(ctx context.Context, e *pooltest.Env) error {
	_, err := pool.Import(ctx, e.Dirs, pool.ImportOptions{Dir: filepath.Dir(e.Store())})
	return err
}

// TestPowerCutInBackup cuts the power while copies of the records are written into the label, and while a pool is imported
// with one. After a cut the records are lost, too: what there was when a copy was acknowledged comes back with it.
func TestPowerCutInBackup(t *testing.T) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{disk}}
	ctx := pooltest.Context(t)
	must(t, pool.Create(ctx, dirs, smallPool))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name) }) // of a test that failed
	nodes := st.recordBackups(t)
	must(t, disk.Remove())
	r := disk.Replay()
	for _, n := range backupCuts(t, r) {
		r.CutAt(n, func() {
			where, sure := "", 0
			for _, e := range r.Entries[:n] {
				if e.Mark != "" {
					where = fmt.Sprintf("cut after %d entries, %s", n, e.Mark)
				}
				if strings.HasPrefix(e.Mark, "ack-copy") {
					sure++
				}
			}
			st.checkImport(t, where, nodes[:sure])
		})
	}
}

// recordBackups makes nodes and copies of the records in turn, and then imports the pool.
func (st *stage) recordBackups(t *testing.T) (nodes []string) {
	ctx := pooltest.Context(t)
	fault.Set(func(point string) error {
		pooltest.Reached(point)
		st.mark("at-" + point)
		return nil
	})
	defer fault.Set(nil)
	s, err := layer.Open(ctx, st.e.Config())
	must(t, err)
	for i := range 4 {
		nodes = append(nodes, fmt.Sprintf("n%d", i))
		makeSnapshot(t, s, nodes[i], "")
		must(t, s.Backup(ctx))
		st.mark("ack-copy")
	}
	must(t, s.Close())
	must(t, pool.Stop(ctx, st.e.Dirs, st.e.Name))
	must(t, loseRecords(st.e))
	must(t, importHere(ctx, st.e))
	st.mark("ack-import")
	must(t, pool.Stop(ctx, st.e.Dirs, st.e.Name))
	return nodes
}

// backupCuts returns where to cut: at the marks of what is tested, and at random, after the first copy.
func backupCuts(t *testing.T, r *pooltest.Replay) (cuts []int) {
	first := slices.IndexFunc(r.Entries, func(e logwrites.Entry) bool { return e.Mark == "ack-copy" }) + 1
	for i, e := range r.Entries[first:] {
		for _, prefix := range []string{"ack-", "at-pool.copy", "at-pool.label", "at-pool.import", "at-pool.start"} {
			if strings.HasPrefix(e.Mark, prefix) {
				cuts = append(cuts, first+i+1)
			}
		}
	}
	rnd := rand.New(rand.NewPCG(4, 0))
	for range randomCuts(t) {
		cuts = append(cuts, first+rnd.IntN(len(r.Entries)-first))
	}
	slices.Sort(cuts)
	t.Logf("%d entries, %d cuts", len(r.Entries), len(cuts))
	return slices.Compact(cuts)
}

// checkImport loses the records, as after a cut, and imports the pool.
func (st *stage) checkImport(t *testing.T, where string, nodes []string) {
	ctx := pooltest.Context(t)
	e := &pooltest.Env{Dirs: pool.Dirs{Root: st.e.Dirs.Root, Run: filepath.Join(t.TempDir(), "run")}, Name: st.e.Name}
	// With what the cut left of an import, and without anything.
	for _, lost := range []bool{false, true} {
		if lost {
			must(t, loseRecords(e))
		}
		if err := importHere(ctx, e); err != nil && (lost || !errors.Is(err, layer.ErrExists)) {
			t.Fatalf("%s: %v", where, err)
		}
		s, err := layer.Open(ctx, e.Config())
		if err != nil {
			t.Fatalf("%s: %v", where, err)
		}
		for _, name := range nodes {
			if err := s.View(ctx, []string{name}, func(context.Context, []string) error { return nil }); err != nil {
				t.Errorf("%s: %v", where, err)
			}
		}
		must(t, s.Close())
		must(t, pool.Stop(ctx, e.Dirs, e.Name))
	}
}
