package layer_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// Whoever is refused for a node's users hears of all of them.
func TestBusyNamesAll(t *testing.T) {
	e := pooltest.New(t, pool.Spec{})
	s := e.Open(t)
	makeSnapshot(t, s, "web", "")
	dir, second := mount(t, s, "web"), t.TempDir()
	must(t, unix.Mount(dir, second, "", unix.MS_BIND, ""))
	err := s.Remove(pooltest.Context(t), "web")
	mustFail(t, err, layer.ErrBusy)
	for _, where := range []string{dir, second} {
		if !strings.Contains(err.Error(), "mounted on "+where) {
			t.Errorf("%v: nothing of %s", err, where)
		}
	}
	must(t, unix.Unmount(second, 0))
	unmount(t, s, "web")
}
