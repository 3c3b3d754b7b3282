package volume_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestRemoveOfAnothersVolume: no dockerd removes what another one, or a container, works in; and what is left of one that died, or forgot, stands in nobody's way.
func TestRemoveOfAnothersVolume(t *testing.T) {
	d := newDocker(t, pooltest.New(t, pool.Spec{}))
	d.call("Create", request{Name: "used"})
	first := d.dockerd()
	dir := first.ask("VolumeDriver.Mount", "used", "one")
	file := filepath.Join(dir, "data")
	must(t, os.WriteFile(file, []byte("precious"), 0o600))
	busy := func(with *child) {
		t.Helper()
		d.fail("Remove", request{Name: "used"}, fmt.Sprintf("process %d", with.cmd.Process.Pid))
		if b, err := os.ReadFile(file); string(b) != "precious" {
			t.Errorf("%q, %v", b, err)
		}
	}
	busy(first) // the container has not begun
	runs := container(t, dir)
	busy(first)
	first.kill()
	busy(runs)
	d.call("Mount", request{Name: "used", ID: "two"}) // forgotten by who asks; the container may have it of him
	busy(runs)
	runs.kill()
	d.call("Remove", request{Name: "used"})
	if v := d.call("List", request{}).Volumes; len(v) != 0 {
		t.Errorf("left %v", v)
	}
}
