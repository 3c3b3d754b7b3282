package space

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// The host's file system is full below the files of a pool that was promised more: writers get errors, nobody hangs, what was not being
// written is untouched, and with room on the host the pool goes on.
func TestHostFull(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			testenv.Need(t, testenv.Root, testenv.Loop, testenv.Ext4)
			ctx := pooltest.Context(t)
			disk := pooltest.NewLoop(t, 300*mib)
			must(t, fsutil.Mkfs(ctx, disk.Path, fsutil.MkfsOptions{Type: fsutil.Ext4, Zeroed: true}))
			host := t.TempDir()
			must(t, fsutil.Mount(ctx, disk.Path, host, fsutil.MountOptions{Type: fsutil.Ext4}))
			defer func() { must(t, fsutil.Unmount(ctx, host, fsutil.UnmountOptions{})) }()
			e := &pooltest.Env{Dirs: pool.Dirs{Root: filepath.Join(host, "root"), Run: filepath.Join(t.TempDir(), "run")}, Name: pooltest.PoolName}
			must(t, pool.Create(ctx, e.Dirs, pool.Spec{Name: e.Name, FS: fs, DataSize: 1 << 30, BaseSize: 320 * mib, Space: pool.Space{GrowAt: -1, GrowBy: -1}}))
			s, err := layer.Open(ctx, e.Config())
			must(t, err)
			const size = 4 * mib
			snapshot(t, s, "idle", "")
			must(t, writeFile(filepath.Join(mount(t, s, "idle"), "kept"), 7, size))
			unmount(t, s, "idle")
			snapshot(t, s, "writer", "")
			dir := mount(t, s, "writer")
			ballast(t, host, 20*mib)
			if err := fill(dir); !isNoRoom(err) {
				t.Errorf("filled up: %v", err)
			}
			nobodyHangs(ctx, t)
			st := status(t, &place{Env: e})
			if st.State != pool.StateActive || *st.HostFree > 4*mib {
				t.Errorf("%s, host free %d", st.State, *st.HostFree)
			}
			unmount(t, s, "writer")
			must(t, os.Remove(filepath.Join(host, "ballast")))
			wantContent(t, filepath.Join(mount(t, s, "idle"), "kept"), 7, size)
			unmount(t, s, "idle")
			wantSound(t, s, "idle")
			afterwards(t, s, "writer")
			remove(t, s, "writer")
			snapshot(t, s, "new", "")
			must(t, s.Close())
			must(t, e.Check(ctx))
			must(t, pool.Destroy(ctx, e.Dirs, e.Name))
		})
	}
}
