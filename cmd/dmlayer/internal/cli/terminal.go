package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// isTerminal tells whether a stream of the command line is a terminal.
func isTerminal(stream any) bool {
	f, ok := stream.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
