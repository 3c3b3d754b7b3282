package layer_test

import (
	"flag"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestZEveryPointReached comes last. It fails for a fault point that none of the tests before has
// reached: nobody knows what a crash there would leave.
func TestZEveryPointReached(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.ThinCheck)
	for _, name := range []string{"test.run", "test.skip"} {
		if flag.Lookup(name).Value.String() != "" {
			t.Skip("only some of the tests were asked for")
		}
	}
	if names := pooltest.Unreached(); len(names) > 0 {
		t.Errorf("points never reached: %v", names)
	}
}
