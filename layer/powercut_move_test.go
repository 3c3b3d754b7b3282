package layer_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// writeAndMove writes to a node through a mount that never flushes, and turns the node into a layer: nobody else makes durable what
// was written, and no check of the file system comes before the record.
func writeAndMove(name string) func(context.Context, *layer.Store, *pooltest.Env) error {
	return func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
		m, err := s.Mount(ctx, name, "", layer.MountOptions{Options: []string{"nobarrier"}})
		if err != nil {
			return err
		}
		err = os.WriteFile(filepath.Join(m.Dir, "v"), pattern, 0o600)
		if err = errors.Join(err, s.Unmount(ctx, name)); err != nil {
			return err
		}
		_, err = s.Commit(ctx, name, "of-"+name, layer.CommitOptions{Move: true})
		return err
	}
}

// TestPowerCutAfterMove cuts the power right after commit --move was acknowledged, of a node that was written just before and is in no
// cache of a file system any more. The pool commits by itself once a second, and so it is done several times.
func TestPowerCutAfterMove(t *testing.T) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	st := &stage{e: &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}, disks: []*pooltest.Disk{disk}}
	must(t, pool.Create(pooltest.Context(t), dirs, smallPool))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, smallPool.Name) }) // of a test that failed
	st.mark("ack-create")
	var steps []step
	have := contents{}
	for i := range 3 {
		name := fmt.Sprintf("n%d", i)
		have = maps.Clone(have)
		have[name] = ""
		steps = append(steps, step{"make-" + name, func(ctx context.Context, s *layer.Store, _ *pooltest.Env) error {
			_, err := s.CreateSnapshot(ctx, name, layer.SnapshotOptions{})
			return err
		}, have})
		have = maps.Clone(have)
		delete(have, name)
		have["of-"+name] = "v=" + string(pattern)
		steps = append(steps, step{"move-" + name, writeAndMove(name), have})
	}
	st.record(t, steps)
	must(t, disk.Remove())
	r := disk.Replay()
	for i, e := range r.Entries {
		if strings.HasPrefix(e.Mark, "ack-move") {
			r.CutAt(i+1, func() {
				count, where := acked(r, i+1)
				st.check(t, where, count, steps)
			})
		}
	}
}
