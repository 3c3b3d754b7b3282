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

// terminalRows returns how many lines a terminal has that knows its size; 0 for every other stream. The console of a
// virtual machine often does not know, and nothing can be placed there.
func terminalRows(stream any) int {
	if !isTerminal(stream) {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(stream.(*os.File).Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 0
	}
	return int(size.Row)
}
