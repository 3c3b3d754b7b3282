package layer_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestDismissDead: the dead go, and with the last one the mount, unless the node is mounted elsewhere or somebody works in it. test of backend/volume has containers.
func TestDismissDead(t *testing.T) {
	s := pooltest.New(t, pool.Spec{}).Open(t)
	ctx := pooltest.Context(t)
	makeSnapshot(t, s, "s", "")
	use := func(user, holder string) string {
		t.Helper()
		m, err := s.MountFor(ctx, "s", user, layer.UserOptions{Once: true, Holder: holder})
		must(t, err)
		return m.Dir
	}
	dead := map[string]bool{}
	dismiss := func(left bool) {
		t.Helper()
		have, err := s.DismissDead(ctx, "s", func(u layer.MountUser) bool { return dead[u.Holder] })
		must(t, err)
		if have.Yes != left || have.PID != 0 || errors.Is(have.Busy, layer.ErrBusy) != left {
			t.Errorf("left %+v, want %v", have, left)
		}
	}
	user := func(name, holder string) layer.MountUser {
		return layer.MountUser{Node: "s", Kind: layer.KindSnapshot, User: name, Count: 1, Holder: holder}
	}
	use("one", "first")
	use("one", "second") // he has come over
	use("two", "first")
	dir := use("three", "")
	mustUsers(t, s, user("one", "second"), user("three", ""), user("two", "first"))
	dismiss(false)

	dead["first"] = true
	elsewhere := t.TempDir()
	must(t, unix.Mount(dir, elsewhere, "", unix.MS_BIND, ""))
	dismiss(true)
	mustUsers(t, s, user("one", "second"), user("three", ""), user("two", "first"))
	must(t, unix.Unmount(elsewhere, 0))
	dismiss(false)
	mustUsers(t, s, user("one", "second"), user("three", ""))

	dead["second"] = true
	must(t, s.UnmountFor(ctx, "s", "three"))
	f, err := os.Create(filepath.Join(dir, "f"))
	must(t, err)
	dismiss(true)
	mustUsers(t, s, user("one", "second"))
	must(t, f.Close())
	dismiss(false)
	mustUsers(t, s)
	if isMounted(t, s, "s") {
		t.Error("still mounted")
	}
	dismiss(false)

	for _, holder := range []string{"A", "a b", strings.Repeat("a", 41)} {
		_, err := s.MountFor(ctx, "s", "one", layer.UserOptions{Holder: holder})
		mustFail(t, err, layer.ErrInvalid)
	}
	_, err = s.DismissDead(ctx, "nobody", func(layer.MountUser) bool { return true })
	mustFail(t, err, layer.ErrNotFound)
}
