package space

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/service"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// An xfs that somebody else mounts from a node's device, as containerd does, gives up at the first error too, where dmlayer serve lives.
func TestP01MountsOfOthersGiveUpToo(t *testing.T) {
	e := newPlace(t, "loopback", pool.Spec{FS: "xfs", BaseSize: 320 * mib})
	s, ctx := e.Open(t), pooltest.Context(t)
	snapshot(t, s, "web", "")
	stop := serve(t, e)
	path, err := s.Attach(ctx, "web", false)
	must(t, err)
	device, err := filepath.EvalSymlinks(path)
	must(t, err)
	dir := t.TempDir()
	must(t, unix.Mount(device, dir, "xfs", 0, "nouuid"))
	for _, kind := range []string{"ENOSPC", "EIO", "default"} {
		setting := fmt.Sprintf("/sys/fs/xfs/%s/error/metadata/%s/max_retries", filepath.Base(device), kind)
		for {
			b, err := os.ReadFile(setting)
			must(t, err)
			if string(b) == "0\n" {
				break
			}
			if ctx.Err() != nil {
				t.Fatalf("%s retries %s times", kind, b)
			}
		}
	}
	must(t, fsutil.Unmount(ctx, dir, fsutil.UnmountOptions{}))
	must(t, s.Detach(ctx, "web"))
	stop()
}

// serve does what dmlayer serve does, until the result is called.
func serve(t testing.TB, e *place) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(pooltest.Context(t))
	ended := make(chan error)
	go func() {
		ended <- service.Run(ctx, service.Config{Dirs: e.Dirs, Pool: e.Name, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	}()
	return func() {
		t.Helper()
		cancel()
		must(t, <-ended)
	}
}

// A pool grows while it is written to, without dmeventd, which only a host has, and without LVM: whoever lives with it does that.
func TestP09GrowsWithoutDmeventd(t *testing.T) {
	everywhere(t, pool.Spec{DataSize: 64 * mib, BaseSize: 256 * mib}, growsAlone)
}

func growsAlone(t *testing.T, e *place, s *layer.Store) {
	snapshot(t, s, "web", "")
	stop := serve(t, e)
	for *status(t, e).Served == false {
		must(t, pooltest.Context(t).Err())
	}
	if e.backing == "device" { // nobody but its owner makes a disk larger
		e.DataDisk.Resize(t, 129*mib)
	}
	dir := mount(t, s, "web")
	const files = 8
	for n := range files {
		must(t, writeFile(filepath.Join(dir, fmt.Sprint(n)), n, 12*mib))
	}
	for n := range files {
		wantContent(t, filepath.Join(dir, fmt.Sprint(n)), n, 12*mib)
	}
	if st := status(t, e); *st.DataTotal < (files*12)*mib || st.State != pool.StateActive {
		t.Errorf("%s, %d of data", st.State, *st.DataTotal)
	}
	unmount(t, s, "web")
	stop()
	wantSound(t, s, "web")
}

// Whoever looks for mounted xfs while others unmount and deactivate theirs finds those that stay, and no error: dmlayer serve would end with it.
func TestP01LookingForXFSThatGo(t *testing.T) {
	e := newPlace(t, "loopback", pool.Spec{FS: "xfs", BaseSize: 320 * mib})
	s := e.Open(t)
	snapshot(t, s, "stays", "")
	mount(t, s, "stays")
	snapshot(t, s, "goes", "")
	ctx, cancel := context.WithCancel(pooltest.Context(t))
	defer cancel()
	looked := make(chan error, 1)
	go func() {
		var err error
		for err == nil && ctx.Err() == nil {
			var found []fsutil.DevNum
			if found, err = fsutil.MountedXFS(); err == nil && len(found) == 0 {
				err = errors.New("no xfs is mounted")
			}
		}
		looked <- err
	}()
	for range 30 {
		mount(t, s, "goes")
		unmount(t, s, "goes")
	}
	cancel()
	must(t, <-looked)
	unmount(t, s, "stays")
}
