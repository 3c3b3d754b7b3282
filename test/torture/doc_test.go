// Package torture_test looks for what is lost or left behind after power cuts, kills, faulty devices and long
// work. Actors do random operations on a pool, each on nodes of its own, and know what must come of them;
// every result is compared with that, also after the worst has happened.
//
// Each test is one unit of work that a seed determines. Of a few, with few operations, the short form is made
// that runs with all other tests; scripts/torture runs as many as it is told to, with one seed after the other,
// and goes on where it was interrupted.
package torture_test

import (
	"os"
	"strconv"
	"testing"

	"github.com/dmlayer/dmlayer/test/pooltest"
)

func TestMain(m *testing.M) {
	pooltest.Main(m, pooltest.Operations{"actor": childActor})
}

// setting returns a number of the environment, which scripts/torture sets: DMLAYER_TORTURE_ and the name.
func setting(t testing.TB, name string, def int) int {
	t.Helper()
	text := os.Getenv("DMLAYER_TORTURE_" + name)
	if text == "" {
		return def
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		t.Fatalf("DMLAYER_TORTURE_%s=%s: want a number", name, text)
	}
	return n
}

// seed says what happens in this unit of work.
func seed(t testing.TB) uint64 {
	t.Helper()
	n := uint64(setting(t, "SEED", 1))
	t.Logf("seed %d; again with DMLAYER_TORTURE_SEED=%d", n, n)
	return n
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
