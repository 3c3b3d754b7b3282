package vmexec

import (
	"fmt"
	"os"
)

// Main plays the role that the process was started for and returns its exit code.
// args[0] is the name of the program.
func Main(args []string) int {
	switch {
	case os.Getpid() == 1 && os.Getenv(shareVariable) != "":
		guestMain(kindUML)
		return ExitHarness // not reached
	case os.Getpid() == 1 && args[0] == "/init":
		guestMain(kindQEMU)
		return ExitHarness // not reached
	case len(args) > 1 && args[0] == reaperName:
		return reaperMain(args[1])
	}
	cfg, err := configFrom(os.Environ(), args[1:])
	if err == nil {
		var code int
		if code, err = run(cfg); err == nil {
			return code
		}
	}
	fmt.Fprintln(os.Stderr, "vmexec:", err)
	return ExitHarness
}
