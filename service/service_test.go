package service_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/service"
	"github.com/dmlayer/dmlayer/test/pooltest"
	"github.com/dmlayer/dmlayer/thinpool"
)

const mib = 1 << 20

// kernelPool is the kernel's word on a pool: its status and its table.
func kernelPool(t testing.TB, s *layer.Store) (thinpool.PoolStatus, thinpool.PoolTable) {
	t.Helper()
	p := thinpool.NewPool(s.Devmapper(), devmapper.ByUUID(devmapper.UUID("DMLAYER-"+s.Pool().UUID()+"-pool")))
	st, err := p.Status()
	must(t, err)
	table, _, err := p.Table()
	must(t, err)
	return st, table
}

// wantFull checks what happens to writers that find the pool full.
func wantFull(t testing.TB, s *layer.Store, waits bool) {
	t.Helper()
	st, table := kernelPool(t, s)
	if st.ErrorIfNoSpace == waits || table.ErrorIfNoSpace == waits {
		t.Errorf("writers that find the pool full wait: %t, want %t (%s; %s)", !st.ErrorIfNoSpace, waits, st, table)
	}
}

// pattern is what a writer writes: not zeros, and not what another one writes.
func pattern(seed, n int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%07d\n", seed)), n/8) }

// writeFile writes a file and makes it durable.
func writeFile(path string, b []byte) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	for at := 0; at < len(b) && err == nil; at += 4 * mib {
		if _, err = f.Write(b[at:min(at+4*mib, len(b))]); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

// mounts makes snapshots and mounts them.
func mounts(t testing.TB, s *layer.Store, n int) (dirs []string) {
	t.Helper()
	for i := range n {
		name := fmt.Sprintf("w%d", i)
		_, err := s.CreateSnapshot(pooltest.Context(t), name, layer.SnapshotOptions{})
		must(t, err)
		dir, err := s.Mount(pooltest.Context(t), name, "", layer.MountOptions{})
		must(t, err)
		dirs = append(dirs, dir.Dir)
	}
	return dirs
}

// writers write one file each, all at the same time, and return what each of them got.
func writers(dirs []string, size int) []error {
	failed := make([]error, len(dirs))
	var all sync.WaitGroup
	for i, dir := range dirs {
		all.Go(func() { failed[i] = writeFile(filepath.Join(dir, "file"), pattern(i, size)) })
	}
	all.Wait()
	return failed
}

// Twenty writers write three times what a pool has: it grows ahead of them, nobody gets an error, and every byte is right.
func TestTwentyWritersGrow(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			const size = 16 * mib
			e := pooltest.New(t, pool.Spec{FS: fs, DataSize: 160 * mib, BaseSize: 320 * mib, MetadataSize: 4 * mib, Space: pool.Space{MinFree: -1, GrowBy: 30}})
			s := e.Open(t)
			srv := serve(t, e)
			wantFull(t, s, true)
			dirs := mounts(t, s, 20)
			for i, err := range writers(dirs, size) {
				if err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
			}
			srv.look()
			for i, dir := range dirs {
				if got, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || !bytes.Equal(got, pattern(i, size)) {
					t.Errorf("writer %d: %d bytes read, and not what was written: %v", i, len(got), err)
				}
				must(t, s.Unmount(pooltest.Context(t), fmt.Sprintf("w%d", i)))
			}
			must(t, srv.stop())
			wantFull(t, s, false)
			st, _ := kernelPool(t, s)
			t.Logf("%s", srv.logs)
			t.Logf("%s; grown %d times", st, srv.logs.count("has grown"))
			if st.TotalData*64<<10 < 320*mib || srv.logs.count("has grown") == 0 {
				t.Errorf("the pool has not grown: %s", st)
			}
		})
	}
}

// At its limit a pool grows no more: writers get errors at once, it is said once, and the hook hears of it all.
func TestLimit(t *testing.T) {
	program, called := hook(t)
	e := pooltest.New(t, pool.Spec{DataSize: 64 * mib, BaseSize: 256 * mib, Space: pool.Space{MinFree: -1, GrowLimit: 96 * mib, Hook: program}})
	s := e.Open(t)
	srv := serve(t, e)
	wantFull(t, s, true)
	dirs := mounts(t, s, 1)
	err := writers(dirs, 128*mib)[0]
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EIO) && !errors.Is(err, unix.EROFS) {
		t.Errorf("the writer got %v", err)
	}
	srv.until("the pool does not grow", "96.0 MiB")
	srv.look()
	wantFull(t, s, false)
	srv.until("data runs low", "percent=100")
	srv.look()
	if n := srv.logs.count("the pool does not grow"); n != 1 {
		t.Errorf("that the pool does not grow was said %d times", n)
	}
	must(t, s.Unmount(pooltest.Context(t), "w0"))
	must(t, s.Remove(pooltest.Context(t), "w0"))
	srv.look()
	if st, _ := kernelPool(t, s); st.Mode != thinpool.ModeReadWrite {
		t.Errorf("after the removal the pool is %s", st)
	}
	srv.until("hook has ended", "data-threshold", "threshold=100")
	must(t, srv.stop())
	calls := called()
	for event, want := range map[string]map[string]string{
		"grown-":       {"DMLAYER_STATE": "active"},
		"grow-failed-": {"DMLAYER_POOL": e.Name, "DMLAYER_ROOT": e.Dirs.Root, "DMLAYER_RUN": e.Dirs.Run},
		// The lower ones may be passed in one step, of which the highest is told.
		"data-threshold-100": {"DMLAYER_POOL_UUID": s.Pool().UUID()},
	} {
		got, ok := calls[event]
		if !ok {
			t.Errorf("the hook was not called for %s", event)
		}
		for k, v := range want {
			if got[k] != v {
				t.Errorf("hook for %s: %s=%s, want %s", event, k, got[k], v)
			}
		}
		for _, k := range []string{"DMLAYER_DATA_USED", "DMLAYER_DATA_TOTAL", "DMLAYER_DATA_PERCENT", "DMLAYER_METADATA_USED", "DMLAYER_METADATA_TOTAL", "DMLAYER_METADATA_PERCENT"} {
			if n, err := strconv.ParseInt(got[k], 10, 64); err != nil || n <= 0 {
				t.Errorf("hook for %s: %s=%s", event, k, got[k])
			}
		}
	}
}

// A second process that wants to serve a pool is told which one does.
func TestServedOnce(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	srv := serve(t, e)
	err := service.Run(pooltest.Context(t), service.Config{Dirs: e.Dirs, Pool: e.Name})
	if errs.Class(err) != errs.ErrBusy || !bytes.Contains([]byte(err.Error()), []byte(fmt.Sprintf("process %d", os.Getpid()))) {
		t.Errorf("a second service: %v", err)
	}
	must(t, srv.stop())
	err = service.Run(pooltest.Context(t), service.Config{Dirs: e.Dirs, Pool: "none"})
	if errs.Class(err) != errs.ErrNotFound || errs.Hint(err) == "" {
		t.Errorf("of no pool: %v", err)
	}
}

// A service outlives its pool: stopped, started, destroyed and made anew.
func TestOutlives(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 64 * mib})
	ctx := pooltest.Context(t)
	srv := serve(t, e)
	must(t, pool.Stop(ctx, e.Dirs, e.Name))
	srv.until("does not run")
	must(t, pool.Start(ctx, e.Dirs, e.Name))
	srv.until("runs again")
	must(t, pool.Destroy(ctx, e.Dirs, e.Name))
	srv.until("the pool is gone")
	must(t, pool.Create(ctx, e.Dirs, pool.Spec{Name: e.Name, DataSize: 64 * mib, BaseSize: 32 * mib}))
	srv.until("there is a pool again")
	srv.look()
	wantFull(t, e.Open(t), true)
	must(t, srv.stop())
}

// What became larger by somebody else's hand is taken up, and settings count at once.
func TestNoticed(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 64 * mib, Space: pool.Space{GrowAt: -1}})
	s, ctx := e.Open(t), pooltest.Context(t)
	srv := serve(t, e)
	wantFull(t, s, false)
	_, err := pool.SetSpace(ctx, e.Dirs, e.Name, func(sp *pool.Space) { sp.GrowAt = 50 })
	must(t, err)
	srv.look()
	wantFull(t, s, true)
	must(t, os.Truncate(e.Data(), 128*mib))
	srv.look()
	if st, _ := kernelPool(t, s); st.TotalData != 128*mib/65536 {
		t.Errorf("the file is larger, the pool is %s", st)
	}
	must(t, srv.stop())
}

// Two pools side by side grow each for itself.
func TestTwoPools(t *testing.T) {
	spec := pool.Spec{DataSize: 64 * mib, BaseSize: 256 * mib, Space: pool.Space{MinFree: -1}}
	var dirs []string
	var stops []func() error
	for range 2 {
		e := pooltest.New(t, spec)
		s := e.Open(t)
		stops = append(stops, serve(t, e).stop)
		dirs = append(dirs, mounts(t, s, 1)...)
		t.Cleanup(func() { must(t, s.Unmount(pooltest.Context(t), "w0")) })
	}
	for i, err := range writers(dirs, 96*mib) {
		if err != nil {
			t.Errorf("writer of pool %d: %v", i, err)
		}
	}
	for _, stop := range stops {
		must(t, stop())
	}
}

// Where the host has no room the pool does not grow into nothing: it gives errors, and goes on when there is room again.
func TestHostFull(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	must(t, os.MkdirAll(e.Dirs.Root, 0o700))
	must(t, unix.Mount("tmpfs", e.Dirs.Root, "tmpfs", 0, "size=288m"))
	t.Cleanup(func() { must(t, unix.Unmount(e.Dirs.Root, 0)) })
	ctx := pooltest.Context(t)
	must(t, pool.Create(ctx, e.Dirs, pool.Spec{Name: e.Name, DataSize: 64 * mib, BaseSize: 256 * mib, MetadataSize: 4 * mib, Space: pool.Space{MinFree: -1}}))
	t.Cleanup(func() { must(t, pool.Destroy(pooltest.Context(t), e.Dirs, e.Name)) })
	ballast := filepath.Join(e.Dirs.Root, "ballast")
	must(t, writeFile(ballast, pattern(0, 180*mib)))
	s := e.Open(t)
	srv := serve(t, e)
	dirs := mounts(t, s, 1)
	if err := writers(dirs, 160*mib)[0]; err == nil {
		t.Error("160 MiB were written into 80")
	}
	srv.until("the pool does not grow", "free")
	srv.look()
	wantFull(t, s, false)
	must(t, s.Unmount(pooltest.Context(t), "w0"))
	must(t, os.Remove(ballast))
	srv.look()
	wantFull(t, s, true)
	if got, _ := kernelPool(t, s); got.Mode != thinpool.ModeReadWrite {
		t.Errorf("there is room again, and the pool is %s", got)
	}
	must(t, srv.stop())
}

// A service that is killed while the pool grows leaves a pool that works: the next command ends the waiting for room that nobody
// makes any more, and the next service goes on growing.
func TestServeKilled(t *testing.T) {
	for _, point := range []string{"pool.grow.recorded", "pool.grow.data-file", "pool.grow.table"} {
		t.Run(point, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{DataSize: 64 * mib, BaseSize: 256 * mib, MetadataSize: 4 * mib, Space: pool.Space{MinFree: -1}})
			s := e.Open(t)
			dirs := mounts(t, s, 1)
			hit := 1
			if point == "pool.grow.table" {
				hit = 2 // the first has writers wait
			}
			c := pooltest.Start(t, pooltest.Job{Op: "serve", Dirs: e.Dirs, Pool: e.Name, Action: pooltest.ActionKill, Point: point, Hit: hit})
			var all sync.WaitGroup
			var werr error
			all.Go(func() { werr = writers(dirs, 56*mib)[0] })
			if err, killed := c.Wait(); !killed {
				t.Fatalf("not killed: %v", err)
			}
			other, err := layer.Open(pooltest.Context(t), e.Config())
			must(t, err)
			must(t, other.Close())
			all.Wait()
			wantFull(t, s, false)
			t.Logf("the writer got %v", werr)
			srv := serve(t, e)
			wantFull(t, s, true)
			must(t, os.RemoveAll(filepath.Join(dirs[0], "file")))
			for i, err := range writers(dirs, 90*mib) {
				if err != nil {
					t.Errorf("writer %d: %v", i, err)
				}
			}
			must(t, s.Unmount(pooltest.Context(t), "w0"))
			must(t, srv.stop())
		})
	}
}

// What is removed while a pool is served is gone at once, and its blocks come back by the service, also
// of what was removed before.
func TestReaps(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 256 * mib})
	s, ctx := e.Open(t), pooltest.Context(t)
	dirs := mounts(t, s, 2)
	empty, _ := kernelPool(t, s)
	must(t, errors.Join(writers(dirs, 20*mib)...))
	for i := range dirs {
		must(t, s.Unmount(ctx, fmt.Sprintf("w%d", i)))
	}
	_, err := s.RemoveNode(ctx, "w0", layer.RemoveOptions{NoWait: true})
	must(t, err)
	srv := serve(t, e)
	changes, err := s.Pool().Changes(ctx)
	must(t, err)
	_, err = s.RemoveNode(ctx, "w1", layer.RemoveOptions{NoWait: true})
	must(t, err)
	for {
		st, _ := kernelPool(t, s)
		if st.UsedData <= empty.UsedData {
			break
		}
		if _, ok := <-changes; !ok {
			t.Fatalf("%d blocks used, %d when the nodes were empty: %v", st.UsedData, empty.UsedData, context.Cause(ctx))
		}
	}
	must(t, srv.stop())
}

// A process dies with a file system frozen: it is thawed at once, and whoever writes to it does not notice.
func TestDeadOwner(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	srv := serve(t, e)
	dirs := mounts(t, s, 1)
	pooltest.RunKilled(t, pooltest.Job{Op: "freeze", Dirs: e.Dirs, Pool: e.Name, Args: []string{"w0", "layer"}, Point: "layer.freeze.suspended"})
	must(t, writeFile(filepath.Join(dirs[0], "after"), pattern(1, mib)))
	srv.until("resumed a device that a dead process had suspended")
	// One who lives is left alone, and waited for until he dies.
	c := pooltest.Start(t, pooltest.Job{Op: "freeze", Dirs: e.Dirs, Pool: e.Name, Args: []string{"w0", "layer"}, Action: pooltest.ActionStop, Point: "layer.freeze.suspended"})
	c.WaitStopped()
	srv.look()
	if n := srv.logs.count("resumed a device"); n != 1 {
		t.Errorf("the living was disturbed")
	}
	c.Kill()
	must(t, writeFile(filepath.Join(dirs[0], "after"), pattern(2, mib)))
	must(t, s.Unmount(pooltest.Context(t), "w0"))
	must(t, srv.stop())
}

// SIGTERM's way: what is running is finished, mounts stay.
func TestStopLeavesMounts(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	srv := serve(t, e)
	dirs := mounts(t, s, 1)
	must(t, srv.stop())
	must(t, writeFile(filepath.Join(dirs[0], "after"), pattern(1, mib)))
	must(t, s.Unmount(context.Background(), "w0"))
}
