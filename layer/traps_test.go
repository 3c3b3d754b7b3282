package layer_test

import (
	"bytes"
	"context"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

// The tests of the kernel's traps that are named after them; docs/kernel-traps.md has the list, and the tests of the others.

// The kernel formats metadata that begins with zeros, and the pool would be empty.
func TestTrap03BlankMetadata(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := open(t, e)
	makeLayer(t, s, "base", "", baseFiles)
	must(t, s.Close())
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	head := make([]byte, 4096)
	readAt(t, e.Metadata(), head, 0)
	writeAt(t, e.Metadata(), make([]byte, 4096), 0)
	for range 2 {
		_, err := layer.Open(ctx, e.Config())
		mustFail(t, err, layer.ErrDamaged)
	}
	now := make([]byte, 4096)
	readAt(t, e.Metadata(), now, 0)
	if !bytes.Equal(now, make([]byte, 4096)) {
		t.Error("somebody wrote a superblock")
	}
	writeAt(t, e.Metadata(), head, 0)
	wantFiles(t, e.Open(t), "base", baseFiles)
}

// A mount of a suspended device hangs and cannot be killed. Whoever comes to a node resumes it.
func TestTrap07SuspendedDevice(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "web", "base")
	mount(t, s, "web")
	n, err := e.Node(ctx, "web")
	must(t, err)
	ref := devmapper.ByUUID(e.DeviceUUID(ctx, n.ID))
	must(t, s.Devmapper().Suspend(ctx, ref, devmapper.SuspendOptions{}))
	second := t.TempDir()
	_, err = s.Mount(ctx, "web", second, layer.MountOptions{})
	must(t, err)
	defer func() { must(t, s.Unmount(ctx, second)) }()
	info, err := s.Devmapper().Info(ref)
	if err != nil || info.Suspended {
		t.Errorf("still suspended: %+v, %v", info, err)
	}
	must(t, writeFiles(e.MountPoint("web"), map[string]string{"x": "y"}))
}

// The kernel lets two devices be made of one thin id, which destroy each other's data. It does not let two have one uuid, and
// dmlayer's says the id.
func TestTrap10SameIDTwice(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	makeSnapshot(t, s, "web", "")
	n, err := e.Node(ctx, "web")
	must(t, err)
	_, err = s.Attach(ctx, "web", true)
	must(t, err)
	uuid := e.DeviceUUID(ctx, n.ID)
	targets, err := s.Devmapper().Table(devmapper.ByUUID(uuid))
	must(t, err)
	own, err := thinpool.ParseThinTable(targets[0].Params)
	must(t, err)
	second := thinpool.ThinSpec{Name: "trap10", UUID: uuid, Pool: own.Pool, ID: thinpool.ID(n.ID), Size: targets[0].Length}
	if _, err := thinpool.Activate(s.Devmapper(), second); err == nil {
		t.Error("a second device of the same uuid")
	}
	// Without the rule the kernel does not mind.
	second.UUID = "TRAP10"
	_, err = thinpool.Activate(s.Devmapper(), second)
	must(t, err)
	must(t, thinpool.Deactivate(s.Devmapper(), devmapper.ByUUID("TRAP10")))
	must(t, s.Detach(ctx, "web"))
}

// What a removed node held is not to be read by the next who gets its blocks.
func TestTrap11OldTenants(t *testing.T) {
	e := pooltest.New(t, pool.Spec{Discard: "ignore", DataSize: 64 << 20, BaseSize: 32 << 20})
	ctx := pooltest.Context(t)
	s := e.Open(t)
	secret := bytes.Repeat([]byte("secret! "), 512)
	const places, stride = 128, 64 << 10
	makeSnapshot(t, s, "old", "")
	asVM(t, s, "old", func(device string) {
		f, err := os.OpenFile(device, os.O_WRONLY, 0)
		must(t, err)
		for i := range int64(places) {
			for part := range int64(stride / len(secret)) {
				_, err := f.WriteAt(secret, 16<<20+i*stride+part*int64(len(secret)))
				must(t, err)
			}
		}
		must(t, fsutil.Flush(f))
		must(t, f.Close())
	})
	must(t, s.Remove(ctx, "old"))
	makeSnapshot(t, s, "new", "")
	asVM(t, s, "new", func(device string) {
		fd, err := unix.Open(device, unix.O_RDWR|unix.O_CLOEXEC, 0)
		must(t, err)
		f := os.NewFile(uintptr(fd), device)
		for i := range int64(places) {
			_, err := f.WriteAt(make([]byte, 4096), 16<<20+i*stride)
			must(t, err)
		}
		must(t, fsutil.Flush(f))
		must(t, f.Close())
		all := make([]byte, places*stride)
		readAt(t, device, all, 16<<20)
		if bytes.Contains(all, secret[:8]) {
			t.Error("the new node shows what the old one held")
		}
	})
}

// A suspended xfs still has a log to replay, which a layer, only ever mounted read-only, cannot do. ext4's is empty.
func TestTrap20FrozenLog(t *testing.T) {
	each(t, func(t *testing.T, _ *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		makeSnapshot(t, s, "web", "")
		dir := mount(t, s, "web")
		must(t, writeFiles(dir, snapFiles))
		_, err := s.Commit(ctx, "web", "copy", layer.CommitOptions{})
		must(t, err)
		unmount(t, s, "web")
		_, err = s.Mount(ctx, "copy", "", layer.MountOptions{})
		must(t, err)
		wantFile(t, dir+"/../copy", "a", snapFiles["a"])
		unmount(t, s, "copy")
		must(t, s.View(ctx, []string{"copy"}, func(context.Context, []string) error { return nil }))
	})
}
