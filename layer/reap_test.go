package layer_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// full makes a snapshot with so many MiB of its own.
func full(t testing.TB, s *layer.Store, name string, mib int) {
	t.Helper()
	makeSnapshot(t, s, name, "base")
	writeMiB(t, mount(t, s, name), "f", mib)
	unmount(t, s, name)
}

func removeLater(t testing.TB, s *layer.Store, name string) {
	t.Helper()
	r, err := s.RemoveNode(pooltest.Context(t), name, layer.RemoveOptions{NoWait: true})
	must(t, err)
	if !r.Gone || !r.Left || len(r.Users) > 0 {
		t.Errorf("%s: %+v", name, r)
	}
}

// While somebody serves the pool, tombstones are left to him, also by those who open it; he gives back what the nodes had and is told of
// more. An interruption leaves the rest.
func TestReap(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 1 << 30})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	before, used := onHost(t, e.Data()), dataUsed(t, e)
	stop, err := s.Pool().Serve(ctx)
	must(t, err)
	for i := range 3 {
		full(t, s, fmt.Sprint("n", i), 70)
	}
	full(t, s, "little", 0)
	for _, name := range []string{"n0", "n1", "n2", "little"} {
		removeLater(t, s, name)
		mustFail(t, s.Remove(ctx, name), layer.ErrNotFound)
	}
	other, err := layer.Open(ctx, e.Config())
	must(t, err)
	must(t, other.Close())
	if now := dataUsed(t, e); now < used+200<<20 {
		t.Errorf("%d used before, %d with tombstones: somebody else deleted them", used, now)
	}
	interrupted, cancel := context.WithCancel(ctx)
	_, err = s.Reap(interrupted, func(r layer.Reaping) {
		if r.Done > 0 {
			cancel()
		}
	})
	mustFail(t, err, context.Canceled)
	var last layer.Reaping
	r, err := s.Reap(ctx, func(r layer.Reaping) { last = r })
	must(t, err)
	if r.Deleted == 0 || r.Deleted > 4 || r.InUse > 0 || last.Done == 0 || last.Done != last.Total || last.Left == 0 {
		t.Errorf("%+v, at last %+v", r, last)
	}
	if now := dataUsed(t, e); now > used+1<<20 {
		t.Errorf("%d used at first, %d at the end", used, now)
	}
	if now := onHost(t, e.Data()); now > before+4<<20 {
		t.Errorf("%d on the host at first, %d at the end", before, now)
	}
	must(t, stop())
}

// Who waits for something to reap hears of what others remove, and not of what is done.
func TestWaitTombstones(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	makeSnapshot(t, s, "a", "base")
	makeSnapshot(t, s, "b", "base")
	ended, cancel := context.WithCancel(ctx)
	cancel()
	mustFail(t, s.WaitTombstones(ended), context.Canceled)
	other := e.Open(t)
	for _, name := range []string{"a", "b"} {
		heard := make(chan error, 1)
		go func() { heard <- s.WaitTombstones(ctx) }()
		must(t, other.Label(ctx, "base", map[string]string{"for": name}, nil)) // means nothing to it
		removeLater(t, other, name)
		must(t, <-heard)
		must(t, s.WaitTombstones(ctx)) // still
		r, err := s.Reap(ctx, nil)
		must(t, err)
		if r.Deleted != 1 {
			t.Errorf("%+v", r)
		}
		mustFail(t, s.WaitTombstones(ended), context.Canceled)
	}
}

// What somebody else is deleting is no reason to look again and again, and is looked at when he has ended, also by dying.
func TestWaitTombstonesAtWork(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	makeSnapshot(t, s, "s", "base")
	c := pooltest.Start(t, pooltest.Job{
		Op: "node", Dirs: e.Dirs, Pool: e.Name, Args: []string{"ext4", "remove", ""}, Action: pooltest.ActionStop, Point: "layer.remove.tombstone",
	})
	c.WaitStopped()
	var turns atomic.Int64
	deleted := make(chan error)
	go func() {
		for {
			turns.Add(1)
			err := s.WaitTombstones(ctx)
			var r layer.Reaped
			if err == nil {
				r, err = s.Reap(ctx, nil)
			}
			if err != nil || r.Deleted > 0 {
				deleted <- err
				return
			}
		}
	}()
	other := e.Open(t)
	for i := range 50 {
		must(t, other.Label(ctx, "base", map[string]string{"n": strconv.Itoa(i)}, nil))
	}
	if n := turns.Load(); n > 10 {
		t.Errorf("looked %d times for what another one is at work on", n)
	}
	c.Kill()
	must(t, <-deleted)
}

// Thin devices that cannot be deleted do not keep the others from it, nor are they tried without end.
func TestReapGoesOn(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	const bad, good = 64, 3
	for i := range bad + good {
		makeSnapshot(t, s, fmt.Sprintf("n%d", i), "base")
		removeLater(t, s, fmt.Sprintf("n%d", i))
	}
	hits := 0
	fault.Set(func(p string) error {
		if p != "layer.recover.deactivated" {
			return nil
		}
		if hits++; hits <= bad {
			return pooltest.ErrInjected
		}
		return nil
	})
	defer fault.Set(nil)
	r, err := s.Reap(ctx, nil)
	if !errors.Is(err, pooltest.ErrInjected) || r.Deleted != good || r.Failed != bad {
		t.Errorf("%+v, %v", r, err)
	}
	// Only what comes anew is worth a look.
	makeSnapshot(t, s, "late", "base")
	heard := make(chan error, 1)
	go func() { heard <- s.WaitTombstones(ctx) }()
	must(t, s.Label(ctx, "base", map[string]string{"for": "nothing"}, nil))
	select {
	case err := <-heard:
		t.Errorf("waited for nothing: %v", err)
	default:
		removeLater(t, s, "late")
		must(t, <-heard)
	}
	r, err = s.Reap(ctx, nil)
	if err != nil || r.Deleted != bad+1 || r.Failed != 0 {
		t.Errorf("again: %+v, %v", r, err)
	}
}

// Several remove the same node, and several finish: each node goes once, and all that went comes back.
func TestRemoveTogether(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	used := dataUsed(t, e)
	full(t, s, "n", 5)
	full(t, s, "m", 5)
	removeLater(t, s, "m")
	results := make(chan error, 4)
	for i := range cap(results) {
		other := e.Open(t)
		go func() {
			if i%2 == 0 {
				_, err := other.Reap(ctx, nil)
				results <- err
				return
			}
			results <- other.Remove(ctx, "n")
		}()
	}
	missing := 0
	for range cap(results) {
		err := <-results
		if errors.Is(err, layer.ErrNotFound) {
			missing++
			continue
		}
		must(t, err)
	}
	if missing != 1 {
		t.Errorf("%d of two removals found no node", missing)
	}
	if now := dataUsed(t, e); now > used+1<<20 {
		t.Errorf("%d used at first, %d at the end", used, now)
	}
}

// A reaper is killed in the middle of discarding, and another one goes on.
func TestReaperKilled(t *testing.T) {
	play(t, func(t *testing.T, sc *scene) {
		before := onHost(t, sc.e.Data())
		stop, err := sc.s.Pool().Serve(sc.ctx) // keeps those who only open the pool from going on
		must(t, err)
		sc.killed("remove what has much, later", "pool.discard.step")
		r, err := sc.s.Reap(sc.ctx, nil)
		must(t, err)
		if r.Deleted != 1 {
			t.Errorf("%+v", r)
		}
		must(t, stop())
		if left := onHost(t, sc.e.Data()); left > before+2<<20 {
			t.Errorf("%d on the host before, %d at the end", before, left)
		}
	})
}

// outside is a process in a mount namespace of its own, with copies of all mounts.
type outside struct {
	*exec.Cmd
	end func()
}

func startOutside(t *testing.T) outside {
	t.Helper()
	cmd := exec.Command("cat")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	ended := false
	o := outside{cmd, func() {
		if !ended {
			ended = true
			_ = in.Close()
			_ = cmd.Wait()
		}
	}}
	t.Cleanup(o.end)
	return o
}

// A node that is unmounted here, while a process elsewhere has a copy of the mount, is removed: it is told who has it, the thin device
// stays until he ends and is then deleted by whoever comes next. One that is mounted here is in use.
func TestRemoveMountedElsewhere(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s, ctx := e.Open(t), pooltest.Context(t)
			makeLayer(t, s, "base", "", nil)
			used := dataUsed(t, e)
			makeSnapshot(t, s, "n", "base")
			dir := filepath.Join(t.TempDir(), "place")
			must(t, os.Mkdir(dir, 0o755))
			_, err := s.Mount(ctx, "n", dir, layer.MountOptions{})
			must(t, err)
			writeMiB(t, dir, "f", 5)
			o := startOutside(t)
			mustFail(t, s.Remove(ctx, "n"), layer.ErrBusy)
			must(t, s.Unmount(ctx, "n"))
			r, err := s.RemoveNode(ctx, "n", layer.RemoveOptions{})
			must(t, err)
			if !r.Gone || !r.Left || len(r.Users) != 1 || r.Users[0].PID != o.Process.Pid || r.Users[0].Command != "cat" || r.Users[0].How != fsutil.UsesMount {
				t.Errorf("%+v", r)
			}
			makeSnapshot(t, s, "n", "base") // the name is free, and is another node's
			got, err := s.Reap(ctx, nil)
			must(t, err)
			if got.Deleted != 0 || got.InUse != 1 {
				t.Errorf("%+v while a process has it", got)
			}
			must(t, e.CheckLive(ctx))
			err = pool.Stop(ctx, e.Dirs, e.Name)
			mustFail(t, err, errs.ErrBusy)
			if want := fmt.Sprintf("process %d (cat)", o.Process.Pid); !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), `removed node "n"`) {
				t.Errorf("%v; want %s", err, want)
			}
			heard := make(chan error, 1)
			wait, cancel := context.WithTimeout(ctx, testenv.Scale(30*time.Second))
			defer cancel()
			go func() { heard <- s.WaitTombstones(wait) }()
			o.end()
			must(t, <-heard)
			reapOne(ctx, t, s)
			must(t, s.Remove(ctx, "n"))
			if now := dataUsed(t, e); now > used+1<<20 {
				t.Errorf("%d used at first, %d at the end", used, now)
			}
		})
	}
}

// A process that has the device itself open is a user like any other: the node stays, and the error names him.
func TestRemoveOpenElsewhere(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	makeSnapshot(t, s, "n", "base")
	mount(t, s, "n")
	i, err := s.Inspect(ctx, "n")
	must(t, err)
	cmd := exec.Command("cat")
	f, err := os.Open(i.Device)
	must(t, err)
	cmd.ExtraFiles = []*os.File{f}
	in, err := cmd.StdinPipe()
	must(t, err)
	must(t, cmd.Start())
	must(t, f.Close())
	unmount(t, s, "n")
	err = s.Remove(ctx, "n")
	mustFail(t, err, layer.ErrBusy)
	if want := fmt.Sprintf("open in process %d (cat)", cmd.Process.Pid); !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %s", err, want)
	}
	must(t, in.Close())
	must(t, cmd.Wait())
	must(t, s.Remove(ctx, "n"))
}

// A removal whose owner dies before the kernel was told to take the device away later is finished all the same. The mount is in no
// namespace any more; a process that works in it is found by that.
func TestRemoveElsewhereFails(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	for i, point := range []string{"layer.remove.tombstone", "layer.remove.later"} {
		name := fmt.Sprint("n", i)
		makeSnapshot(t, s, name, "base")
		cmd := exec.Command("cat")
		cmd.Dir = mount(t, s, name)
		in, err := cmd.StdinPipe()
		must(t, err)
		must(t, cmd.Start())
		must(t, unix.Unmount(cmd.Dir, unix.MNT_DETACH))
		broken := errors.New("broken")
		fault.Set(func(p string) error {
			pooltest.Reached(p)
			if p == point {
				return broken
			}
			return nil
		})
		r, err := s.RemoveNode(ctx, name, layer.RemoveOptions{})
		fault.Set(nil)
		mustFail(t, err, broken)
		if !r.Gone || len(r.Users) != 1 || r.Users[0].How != fsutil.UsesFile || r.Users[0].PID != cmd.Process.Pid {
			t.Errorf("%s: %+v", point, r)
		}
		other, err := layer.Open(ctx, e.Config())
		must(t, err)
		must(t, in.Close())
		must(t, cmd.Wait())
		reapOne(ctx, t, other)
		must(t, other.Close())
	}
}

// reapOne reaps until a node is gone: the kernel takes a device away a little after its last user, on a thread of its own.
func reapOne(ctx context.Context, t *testing.T, s *layer.Store) {
	t.Helper()
	var got layer.Reaped
	for got.Deleted == 0 {
		must(t, s.WaitTombstones(ctx))
		var err error
		got, err = s.Reap(ctx, nil)
		must(t, err)
	}
	if got.Deleted != 1 || got.InUse != 0 {
		t.Errorf("reaped %+v", got)
	}
}

// What a removal in many goes tells of its progress only grows, to all that there is.
func TestRemoveProgress(t *testing.T) {
	e := pooltest.New(t, pool.Spec{DataSize: 1 << 30})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeLayer(t, s, "base", "", nil)
	full(t, s, "n", 300)
	var done, total int64
	_, err := s.RemoveNode(ctx, "n", layer.RemoveOptions{Progress: func(d, all int64) {
		if d < done || d > all {
			t.Errorf("%d of %d after %d of %d", d, all, done, total)
		}
		done, total = d, all
	}})
	must(t, err)
	if done != total || done < 300<<20 {
		t.Errorf("%d of %d in the end", done, total)
	}
}
