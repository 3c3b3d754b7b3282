package layer_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// mountDevice mounts as a container engine does that was told of a device.
func mountDevice(t *testing.T, d layer.Device) string {
	t.Helper()
	dir := t.TempDir()
	p, flags := "", uintptr(0)
	for _, o := range d.Options {
		if o == "ro" {
			flags |= unix.MS_RDONLY
			continue
		}
		p += "," + o
	}
	must(t, unix.Mount(d.Path, dir, d.FS, flags, p[min(1, len(p)):]))
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	return dir
}

// TestActivateForOthers goes through the life of a snapshot that somebody else mounts.
func TestActivateForOthers(t *testing.T) {
	for _, fs := range fileSystems {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s := e.Open(t)
			ctx := pooltest.Context(t)
			makeLayer(t, s, "base", "", baseFiles)
			so := layer.SnapshotOptions{Parent: "base", Size: grown}
			mine := layer.ClaimOptions{Claim: testClaim}
			_, d, err := s.Prepare(ctx, "s", so, mine, nil)
			must(t, err)
			dir := mountDevice(t, d)
			must(t, sameFiles("the mount", dir, baseFiles))
			if size, err := pooltest.FSSize(dir); err != nil || size < grown*9/10 {
				t.Errorf("the file system has %d bytes of %d, %v", size, grown, err)
			}
			must(t, os.WriteFile(filepath.Join(dir, "s"), []byte("of the snapshot"), 0o600))

			again, err := s.Activate(ctx, "s", mine)
			if err != nil || again.Path != d.Path || !slices.Equal(again.Options, d.Options) {
				t.Errorf("activated again: %+v, %v; before %+v", again, err, d)
			}
			_, err = s.Mount(ctx, "s", "", layer.MountOptions{})
			mustFail(t, err, layer.ErrBusy)
			_, err = s.Attach(ctx, "s", false)
			mustFail(t, err, layer.ErrBusy)
			mustFail(t, s.Remove(ctx, "s"), layer.ErrBusy)

			// Its user still has it mounted when he commits it.
			_, err = s.Commit(ctx, "s", "l", layer.CommitOptions{Move: true, Claim: testClaim})
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, "late"), nil, 0o600))
			must(t, unix.Unmount(dir, 0))
			must(t, s.View(ctx, []string{"l"}, func(_ context.Context, roots []string) error { return sameFiles("l", roots[0], snapFiles) }))
			if _, err := os.Lstat(d.Path); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the link stays: %v", err)
			}
		})
	}
}

// TestSharedReadOnly has two users of one layer, who share its device.
func TestSharedReadOnly(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	one, err := s.Activate(ctx, "base", layer.ClaimOptions{Claim: "one"})
	must(t, err)
	two, err := s.Activate(ctx, "base", layer.ClaimOptions{Claim: "two"})
	must(t, err)
	if one.Path != two.Path || !one.ReadOnly || !slices.Contains(one.Options, "ro") {
		t.Errorf("%+v and %+v", one, two)
	}
	must(t, s.Deactivate(ctx, "base", "one"))
	mustFail(t, s.Deactivate(ctx, "base", "Odd/../claim"), layer.ErrInvalid)
	_, err = s.Activate(ctx, "base", layer.ClaimOptions{Claim: "attached"})
	mustFail(t, err, layer.ErrInvalid)
	_, err = s.Activate(ctx, "base", layer.ClaimOptions{Claim: "one"})
	must(t, err)
	nothing := func(*layer.DocTx) error { return nil }
	if removed, err := s.Drop(ctx, "base", "one", nothing); err != nil || removed {
		t.Errorf("a layer that somebody has claimed is removed: %v, %v", removed, err)
	}
	dir := mountDevice(t, two)
	if removed, err := s.Drop(ctx, "base", "two", nothing); err != nil || !removed {
		t.Errorf("a layer that somebody has mounted, and that nobody comes back for, stays: %v, %v", removed, err)
	}
	must(t, sameFiles("the mount", dir, baseFiles)) // for its last user
	must(t, unix.Unmount(dir, 0))
	_, err = s.Reap(ctx, nil)
	must(t, errors.Join(err, e.CheckLive(ctx)))
}

// TestDropWaitsForNobody removes a snapshot that is mounted, and what needs none of its users.
func TestDropWaitsForNobody(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	_, d, err := s.Prepare(ctx, "s", layer.SnapshotOptions{Parent: "base"}, layer.ClaimOptions{Claim: testClaim}, noted("p"))
	must(t, err)
	dir := mountDevice(t, d)
	removed, err := s.Drop(ctx, "s", testClaim, forgotten("p"))
	if err != nil || !removed {
		t.Fatalf("removed %v, %v", removed, err)
	}
	_, err = s.Get(ctx, "s")
	mustFail(t, err, layer.ErrNotFound)
	// Its user goes on, on blocks that nobody took.
	must(t, os.WriteFile(filepath.Join(dir, "w"), []byte("alive"), 0o600))
	must(t, sameFiles("the mount", dir, map[string]string{"a": "1", "w": "alive"}))
	must(t, unix.Unmount(dir, 0))
	_, err = s.Reap(ctx, nil)
	must(t, err)
	must(t, e.CheckLive(ctx))
}

// TestDropRefused leaves everything as it was to whoever may not drop what he claims.
func TestDropRefused(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	_, d, err := s.Prepare(ctx, "s", layer.SnapshotOptions{Parent: "base"}, layer.ClaimOptions{Claim: testClaim}, noted("p"))
	must(t, err)
	refused := func(what string, ctx context.Context, documents func(*layer.DocTx) error, class error) {
		t.Helper()
		removed, err := s.Drop(ctx, "s", testClaim, documents)
		if mustFail(t, err, class); removed {
			t.Errorf("%s: removed", what)
		}
		i, err := s.Inspect(pooltest.Context(t), "s")
		must(t, err)
		if _, err := os.Stat(d.Path); err != nil || !slices.Contains(i.Claims, testClaim) {
			t.Errorf("%s: claims %q, link %v", what, i.Claims, err)
		}
		if _, err := s.Document(pooltest.Context(t), "test", "p"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	refused("documents", ctx, func(*layer.DocTx) error { return layer.ErrExists }, layer.ErrExists)
	ended, cancel := context.WithCancel(ctx)
	refused("cancelled", ended, func(tx *layer.DocTx) error { cancel(); return ended.Err() }, context.Canceled)
	makeSnapshot(t, s, "child", "s")
	refused("child", ctx, forgotten("p"), layer.ErrBusy)
	must(t, s.Remove(ctx, "child"))
	_, err = s.Activate(ctx, "s", layer.ClaimOptions{Claim: "other"})
	must(t, err)
	refused("other claim", ctx, forgotten("p"), layer.ErrBusy)
	must(t, s.Deactivate(ctx, "s", "other"))
	removed, err := s.Drop(ctx, "s", testClaim, forgotten("p"))
	if err != nil || !removed {
		t.Errorf("removed %v, %v", removed, err)
	}
	// Nobody would come back for what is attached when it is detached.
	for _, name := range []string{"base", "s"} {
		if name == "s" {
			makeSnapshot(t, s, "s", "base")
		}
		_, err := s.Attach(ctx, name, true)
		must(t, err)
		_, err = s.Drop(ctx, name, "", forgotten("p"))
		mustFail(t, err, layer.ErrBusy)
		must(t, s.Detach(ctx, name))
	}
}

// TestOwn tells what was written into nodes, overwrites included, and of a removed one nothing.
func TestOwn(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	_, err := s.CreateLayer(ctx, "base", layer.LayerOptions{}, func(_ context.Context, w *layer.LayerWriter) error {
		return os.WriteFile(filepath.Join(w.Root(), "big"), make([]byte, 4<<20), 0o600)
	})
	must(t, err)
	makeSnapshot(t, s, "idle", "base")
	makeSnapshot(t, s, "s", "base")
	f, err := os.OpenFile(filepath.Join(mount(t, s, "s"), "big"), os.O_WRONLY, 0)
	must(t, err)
	_, err = f.Write(slices.Repeat([]byte("x"), 1<<20))
	must(t, errors.Join(err, f.Close()))
	unmount(t, s, "s")
	own, at, err := s.Own(ctx, []string{"base", "s", "idle", "nobody"})
	must(t, err)
	if own["base"].Bytes < 4<<20 || own["s"].Bytes < 1<<20 || own["s"].Bytes > 3<<20 || own["idle"].Bytes != 0 || len(own) != 3 {
		t.Errorf("own %v", own)
	}
	if now, err := s.Moment(ctx); err != nil || now != at {
		t.Errorf("moment %+v, %+v, %v", now, at, err)
	}
	must(t, s.Remove(ctx, "idle"))
	if now, err := s.Moment(ctx); err != nil || now == at {
		t.Errorf("moment after a removal %+v, %v", now, err)
	}
}

// TestDropServed leaves the thin device to whoever serves the pool, who hears of it.
func TestDropServed(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	_, _, err := s.Prepare(ctx, "s", layer.SnapshotOptions{Parent: "base"}, layer.ClaimOptions{Claim: testClaim}, nil)
	must(t, err)
	stop, err := s.Pool().Serve(ctx)
	must(t, err)
	before := s.Cost()
	removed, err := s.Drop(ctx, "s", testClaim, func(*layer.DocTx) error { return nil })
	must(t, err)
	if after := s.Cost(); !removed || after.Messages != before.Messages {
		t.Errorf("removed: %v, with %d messages", removed, after.Messages-before.Messages)
	}
	must(t, s.WaitTombstones(ctx))
	done, err := s.Reap(ctx, nil)
	must(t, errors.Join(err, stop()))
	if done.Deleted != 1 {
		t.Errorf("%+v was deleted", done)
	}
}

// TestEditClaimed writes into what somebody has activated, which Edit does not.
func TestEditClaimed(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	_, d, err := s.Prepare(ctx, "s", layer.SnapshotOptions{Parent: "base"}, layer.ClaimOptions{Claim: testClaim}, nil)
	must(t, err)
	write := func(_ context.Context, root string) error {
		return os.WriteFile(filepath.Join(root, "edited"), []byte("kept"), 0o600)
	}
	mustFail(t, s.Edit(ctx, "s", write), layer.ErrBusy)
	must(t, s.EditClaimed(ctx, "s", write))
	mustFail(t, s.EditClaimed(ctx, "base", write), layer.ErrInvalid)
	if text, err := os.ReadFile(filepath.Join(mountDevice(t, d), "edited")); err != nil || string(text) != "kept" {
		t.Errorf("%q, %v", text, err)
	}
	_, err = s.CreateSnapshot(ctx, "attached", layer.SnapshotOptions{Parent: "base"})
	must(t, err)
	_, err = s.Attach(ctx, "attached", false)
	must(t, err)
	mustFail(t, s.EditClaimed(ctx, "attached", write), layer.ErrBusy)
	must(t, s.Detach(ctx, "attached"))
}
