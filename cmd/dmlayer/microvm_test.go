package main_test

import (
	"os"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

// TestMicroVM starts virtual machines on the block devices of snapshots, as docs/microvm.md says: test/microvm/flows.sh. A machine inside the machine of the tests
// is slow, minutes.
func TestMicroVM(t *testing.T) {
	if os.Getenv("DMLAYER_TEST_LONG") == "" {
		t.Skip("DMLAYER_TEST_LONG=1 runs it")
	}
	testenv.Need(t, testenv.Guest, testenv.DM, testenv.Loop, testenv.Ext4, testenv.Images, testenv.Containerd, testenv.TCG)
	said := runScript(t, []string{"gotools/containerd-v2.4.2"}, "microvm/flows.sh", cached(t, "images/small.docker.tar"), cached(t, "."))
	if strings.Count(said, "ok a machine on /run/dmlayer/dev/") != 2 || !strings.HasSuffix(said, "ok\n") {
		t.Error("it was not done to the end")
	}
}
