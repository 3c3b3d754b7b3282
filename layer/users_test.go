package layer_test

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMountUsers(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			e := pooltest.New(t, pool.Spec{FS: fs})
			s := e.Open(t)
			ctx := pooltest.Context(t)
			makeLayer(t, s, "base", "", baseFiles)
			makeSnapshot(t, s, "s", "base")
			one := layer.MountUser{Node: "s", Kind: layer.KindSnapshot, User: "one", Count: 2}
			two := layer.MountUser{Node: "s", Kind: layer.KindSnapshot, User: "two", Count: 1}

			dir := mountFor(t, s, "s", "one")
			must(t, sameFiles("s", dir, baseFiles))
			// Another process counts in the same place.
			other := e.Open(t)
			if again := mountFor(t, other, "s", "one"); again != dir {
				t.Errorf("mounted on %s and %s", dir, again)
			}
			for range 2 {
				_, err := other.MountFor(ctx, "s", "two", layer.UserOptions{Once: true})
				must(t, err)
			}
			mustUsers(t, s, one, two)
			must(t, s.UnmountFor(ctx, "s", "two"))
			must(t, s.UnmountFor(ctx, "s", "two")) // who is not counted does no harm
			must(t, s.UnmountFor(ctx, "s", "three"))
			must(t, s.UnmountFor(ctx, "s", "one"))
			if !isMounted(t, s, "s") {
				t.Fatal("unmounted under a user")
			}
			one.Count = 1
			mustUsers(t, s, one)

			// A file that somebody has open keeps the mount, and the user.
			f, err := os.Open(filepath.Join(dir, "a"))
			must(t, err)
			mustFail(t, s.UnmountFor(ctx, "s", "one"), layer.ErrBusy)
			mustUsers(t, s, one)
			must(t, f.Close())
			must(t, s.UnmountFor(ctx, "s", "one"))
			mustUsers(t, s)
			if i, err := s.Inspect(ctx, "s"); err != nil || i.State != layer.StateInactive {
				t.Errorf("%v, %v", i.State, err)
			}

			// What is mounted is the truth: what was counted of a mount that is gone is not counted again.
			mountFor(t, s, "s", "dead")
			must(t, s.Unmount(ctx, "s"))
			mountFor(t, s, "s", "one")
			mustUsers(t, s, one)
			// A run directory that forgot the users: the mount goes with the next one who leaves.
			must(t, os.RemoveAll(filepath.Join(e.Dirs.Run, "state")))
			must(t, s.UnmountFor(ctx, "s", "one"))
			if isMounted(t, s, "s") {
				t.Error("still mounted")
			}

			// The dead are dismissed, down to what is kept.
			for range 3 {
				mountFor(t, s, "s", "one")
			}
			must(t, s.Dismiss(ctx, "s", "one", 1))
			mustUsers(t, s, one)
			must(t, s.Dismiss(ctx, "s", "one", 0))
			mustUsers(t, s)

			// A layer is mounted read-only, and what is counted of a node that goes goes with it.
			dir = mountFor(t, s, "base", "one")
			if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); err == nil {
				t.Error("a layer was written to")
			}
			must(t, s.UnmountFor(ctx, "base", "one"))
			mountFor(t, s, "s", "one")
			must(t, s.Unmount(ctx, "s"))
			must(t, s.Remove(ctx, "s"))
			mustUsers(t, s)

			mustFail(t, mountErr(ctx, s, "nobody", "one"), layer.ErrNotFound)
			for _, user := range []string{"", "../x", "A", "a/b", "-a"} {
				mustFail(t, mountErr(ctx, s, "base", user), layer.ErrInvalid)
				mustFail(t, s.UnmountFor(ctx, "base", user), layer.ErrInvalid)
			}
		})
	}
}

func mountErr(ctx context.Context, s *layer.Store, name, user string) error {
	_, err := s.MountFor(ctx, name, user, layer.UserOptions{})
	return err
}

func TestEdit(t *testing.T) {
	s := pooltest.New(t, pool.Spec{}).Open(t)
	ctx := pooltest.Context(t)
	makeLayer(t, s, "base", "", baseFiles)
	makeSnapshot(t, s, "s", "base")
	write := func(_ context.Context, root string) error {
		return os.WriteFile(filepath.Join(root, "e"), []byte("x"), 0o600)
	}
	mustFail(t, s.Edit(ctx, "base", write), layer.ErrInvalid)
	must(t, s.Edit(ctx, "s", write))
	// Also while it is mounted.
	dir := mountFor(t, s, "s", "one")
	must(t, unix.Unlink(filepath.Join(dir, "e")))
	must(t, s.Edit(ctx, "s", write))
	must(t, sameFiles("s", dir, map[string]string{"a": "1", "e": "x"}))
	mustFail(t, s.Edit(ctx, "s", func(context.Context, string) error { return unix.ENOSPC }), unix.ENOSPC)
	must(t, s.UnmountFor(ctx, "s", "one"))
	_, err := s.Attach(ctx, "s", false)
	must(t, err)
	mustFail(t, s.Edit(ctx, "s", write), layer.ErrBusy)
	must(t, s.Detach(ctx, "s"))
}

// TestPruneKeeper: what somebody else keeps is his to remove.
func TestPruneKeeper(t *testing.T) {
	s := pooltest.New(t, pool.Spec{}).Open(t)
	ctx := pooltest.Context(t)
	for name, attrs := range map[string]map[string]string{"kept": {layer.AttrKeeper: "docker"}, "free": nil} {
		_, err := s.CreateLayer(ctx, name, layer.LayerOptions{Attrs: attrs}, func(context.Context, *layer.LayerWriter) error { return nil })
		must(t, err)
	}
	gone, err := s.Prune(ctx, false)
	if err != nil || len(gone) != 1 || gone[0] != "free" {
		t.Errorf("pruned %v, %v", gone, err)
	}
}

// A user who goes while all are looked at is no error.
func TestMountUsersGoing(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s, ctx := e.Open(t), pooltest.Context(t)
	makeSnapshot(t, s, "s", "")
	mountFor(t, s, "s", "one")
	n, err := e.Node(ctx, "s")
	must(t, err)
	dirs, err := filepath.Glob(filepath.Join(e.Dirs.Run, "*", "*", "users", strconv.FormatUint(uint64(n.ID), 10)))
	if err != nil || len(dirs) != 1 {
		t.Fatalf("counted in %q, %v", dirs, err)
	}
	must(t, os.Symlink("gone", filepath.Join(dirs[0], "two"))) // is listed, and not there when it is read
	mustUsers(t, s, layer.MountUser{Node: "s", Kind: layer.KindSnapshot, User: "one", Count: 1})
	must(t, os.Remove(filepath.Join(dirs[0], "two")))
	must(t, s.UnmountFor(ctx, "s", "one"))
}
