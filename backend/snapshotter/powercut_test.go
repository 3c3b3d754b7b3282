package snapshotter_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"

	"github.com/dmlayer/dmlayer/backend/snapshotter"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestPowerCut commits snapshots through the socket, whose writer never flushed, and cuts the power after each answer and at each point before it. What
// is committed then is whole, and what was answered is committed.
func TestPowerCut(t *testing.T) {
	dirs := pooltest.Dirs(t)
	disk := pooltest.NewDisk(t, dirs.Root, 512<<20)
	e := &pooltest.Env{Dirs: dirs, Name: pooltest.PoolName}
	must(t, pool.Create(pooltest.Context(t), dirs, pool.Spec{Name: e.Name, DataSize: 256 << 20, BaseSize: 64 << 20}))
	t.Cleanup(func() { _ = pool.Stop(pooltest.Context(t), dirs, e.Name) }) // of a test that failed
	text := bytes.Repeat([]byte("what a layer holds\n"), 10000)
	const layers = 2
	commitAll(t, e, disk, text, layers)
	must(t, disk.Remove())
	r := disk.Replay()
	answered, cuts := -1, 0
	for i, entry := range r.Entries {
		if entry.Mark == "" {
			continue
		}
		if strings.HasPrefix(entry.Mark, "answered") {
			answered++
		}
		if answered < 0 || !strings.HasPrefix(entry.Mark, "answered") && !strings.HasPrefix(entry.Mark, "at-layer.commit") {
			continue
		}
		cuts++
		r.CutAt(i+1, func() { wholeAfterCut(t, e, entry.Mark, text, answered, layers) })
	}
	if cuts < 2*layers {
		t.Errorf("the power was cut %d times", cuts)
	}
}

// commitAll commits one snapshot on the other, with a mark at each fault point and after each answer.
func commitAll(t *testing.T, e *pooltest.Env, disk *pooltest.Disk, text []byte, layers int) {
	ctx := pooltest.Context(t)
	store, err := layer.Open(ctx, e.Config())
	must(t, err)
	t.Cleanup(func() { _ = store.Close() }) // of a test that failed
	client := dialed(t, store)
	disk.Mark("answered-create")
	fault.Set(func(point string) error {
		disk.Mark("at-" + point)
		return nil
	})
	defer fault.Set(nil)
	parent := ""
	for i := range layers {
		name := fmt.Sprintf("layer-%d", i)
		m, err := client.Prepare(ctx, "active", parent)
		must(t, err)
		m[0].Options = append(m[0].Options, "nobarrier")
		with(t, m, func(dir string) { must(t, os.WriteFile(filepath.Join(dir, name), text, 0o600)) })
		must(t, client.Commit(ctx, name, "active"))
		disk.Mark("answered-" + name)
		parent = name
	}
	must(t, store.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
}

// wholeAfterCut opens the pool as after a reboot, and looks at what is committed.
func wholeAfterCut(t *testing.T, of *pooltest.Env, where string, text []byte, answered, layers int) {
	ctx := pooltest.Context(t)
	e := &pooltest.Env{Dirs: pool.Dirs{Root: of.Dirs.Root, Run: filepath.Join(t.TempDir(), "run")}, Name: of.Name}
	store, err := layer.Open(ctx, e.Config())
	if err != nil {
		t.Fatalf("%s: %v", where, err)
	}
	s := snapshotter.New(store)
	for i := range layers {
		name := fmt.Sprintf("layer-%d", i)
		info, err := s.Stat(ctx, name)
		if err != nil || info.Kind != snapshots.KindCommitted {
			if i < answered {
				t.Errorf("%s: %s was answered to be committed and is %+v, %v", where, name, info, err)
			}
			continue
		}
		m, err := s.View(ctx, "view", name)
		must(t, err)
		if err := holdsAll(t, m, i+1, text); err != nil {
			t.Errorf("%s: %s: %v", where, name, err)
		}
		must(t, s.Remove(ctx, "view"))
	}
	if err := errors.Join(store.Close(), e.Check(ctx)); err != nil {
		t.Errorf("%s: %v", where, err)
	}
}

func holdsAll(t *testing.T, m []mount.Mount, layers int, text []byte) (err error) {
	with(t, m, func(dir string) {
		for i := range layers {
			got, rerr := os.ReadFile(filepath.Join(dir, fmt.Sprintf("layer-%d", i)))
			if rerr == nil && !bytes.Equal(got, text) {
				rerr = fmt.Errorf("file of layer %d has %d bytes that are not what was written", i, len(got))
			}
			err = errors.Join(err, rerr)
		}
	})
	return err
}
