// Package testenv says what tests may expect of the machine they run on, and sees to it that they
// leave nothing behind.
//
// A package whose tests touch the kernel has
//
//	func TestMain(m *testing.M) { testenv.Main(m) }
//
// and each such test begins with Need. The same tests run without root, as root and in a virtual
// machine (scripts/test); where DMLAYER_TEST_REQUIRE names a feature, its absence is a failure and
// not a skip.
package testenv

import (
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/vmexec/leak"
)

// ExitLeak is the exit code of a test binary whose tests succeeded and left something behind.
const ExitLeak = 99

// settleTime bounds the wait for what the kernel takes away only after a call has returned.
const settleTime = 2 * time.Second

// Main runs the tests of a package and exits. When they succeed, device-mapper devices, loop
// devices, mounts and open files that were not there before are listed, and the exit code is
// ExitLeak.
func Main(m *testing.M) {
	os.Exit(checked(m.Run, os.Stderr))
}

func checked(run func() int, w io.Writer) int {
	kernel, process := leak.Kernel(), leak.Process()
	code := run()
	left := settled(func() []string {
		return append(leak.Kernel().Since(kernel), leak.Process().Since(process)...)
	})
	if len(left) == 0 {
		return code
	}
	fmt.Fprintf(w, "testenv: the tests left behind:\n\t%s\n", strings.Join(left, "\n\t"))
	if code == 0 {
		return ExitLeak
	}
	return code
}

// settled returns what look returns once that is nothing, or what it still returns after
// settleTime.
func settled(look func() []string) []string {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(settleTime)
	defer end.Stop()
	for {
		found := look()
		if len(found) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-end.C:
			return found
		}
	}
}

// Scale stretches a deadline of a test to the machine: a virtual machine is slower, and one
// without hardware support much slower. It is for bounds that a correct program never reaches.
func Scale(d time.Duration) time.Duration {
	switch os.Getenv("DMLAYER_VM") {
	case "uml":
		return 10 * d
	case "qemu":
		return 20 * d
	}
	return d
}
