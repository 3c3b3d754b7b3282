package pool_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Where the copy of the superblock cannot be removed, as the root directory is read-only, a pool on disks that are not may be read, and its metadata is not written: the
// copy would be of another time.
func TestDeviceReadOnlyRoot(t *testing.T) {
	const payload = 1 << 20 // behind the header
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 256 << 20, MetadataSize: 8 << 20, BaseSize: 64 << 20}, 0)
	ctx := pooltest.Context(t)
	s := opened(t, e)
	_, err := s.CreateSnapshot(ctx, "one", layer.SnapshotOptions{})
	must(t, err)
	must(t, s.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	kept := filepath.Join(folder(e), "metadata.superblock")
	before, err := os.ReadFile(kept)
	must(t, err)

	root := e.Dirs.Root
	must(t, unix.Mount(root, root, "", unix.MS_BIND, ""))
	mounted := true
	unmount := func() {
		if mounted {
			must(t, unix.Unmount(root, 0))
			mounted = false
		}
	}
	defer unmount()
	must(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	if st := state(t, e); st.State != pool.StateReadOnly {
		t.Errorf("started as %+v", st)
	}
	s = opened(t, e)
	_, err = s.Get(ctx, "one")
	must(t, err)
	must(t, s.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	unmount()
	after, err := os.ReadFile(kept)
	must(t, err)
	if !bytes.Equal(before, after) {
		t.Error("the copy has changed")
	}
	f, err := os.Open(e.MetadataDisk.File)
	must(t, err)
	defer f.Close()
	block := make([]byte, thinmeta.BlockSize)
	_, err = f.ReadAt(block, payload)
	must(t, err)
	if !bytes.Equal(block, before[:thinmeta.BlockSize]) {
		t.Error("the metadata was written")
	}
	s = opened(t, e)
	useNode(t, s, "one")
	must(t, s.Close())
}

// A pool is stopped as a whole where no copy of the superblock can be kept, nor what is in its place removed.
func TestStopWithoutCopy(t *testing.T) {
	e := pooltest.NewDevice(t, pool.Spec{DataSize: 256 << 20, MetadataSize: 8 << 20, BaseSize: 64 << 20}, 0)
	ctx := pooltest.Context(t)
	kept := filepath.Join(folder(e), "metadata.superblock")
	stopped := func(how string) {
		t.Helper()
		err := pool.Stop(ctx, e.Dirs, e.Name)
		if err != nil && !strings.Contains(err.Error(), "is stopped, but its records were not copied") {
			t.Errorf("%s: %v", how, err)
		}
		left, err := filepath.Glob("/dev/mapper/dmlayer-*")
		must(t, err)
		if len(left) > 0 {
			t.Errorf("%s: left %v", how, left)
		}
	}
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	must(t, os.MkdirAll(filepath.Join(kept, "full"), 0o700))
	stopped("with a folder in its place")
	must(t, os.RemoveAll(kept))

	must(t, pool.Start(ctx, e.Dirs, e.Name))
	root := e.Dirs.Root
	must(t, unix.Mount(root, root, "", unix.MS_BIND, ""))
	defer func() { must(t, unix.Unmount(root, 0)) }()
	must(t, unix.Mount("", root, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""))
	stopped("with a root directory that is read-only")
}
