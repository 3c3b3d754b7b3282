package vmexec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// keptLog copies the console log to where it outlives the run, and says so. A log without content
// (there is none on the host's own kernel) is not kept.
func (r *virtualMachine) keptLog() string {
	data, err := os.ReadFile(r.console.Name())
	if err == nil && len(data) == 0 {
		return ""
	}
	pattern := filepath.Base(r.cfg.args[0]) + "-*.log"
	var f *os.File
	if err == nil {
		dir := filepath.Join(r.cfg.cache, "log")
		_ = os.MkdirAll(dir, 0o755) // if not, neither will the file
		if f, err = os.CreateTemp(dir, pattern); err != nil {
			f, err = os.CreateTemp("", "vmexec-"+pattern) // somebody else's cache
		}
	}
	if err == nil {
		_, err = f.Write(data)
		if errClose := f.Close(); err == nil {
			err = errClose
		}
	}
	if err != nil {
		return fmt.Sprintf("; the console log is lost: %v", err)
	}
	return "; console log: " + f.Name()
}

// consoleExcerpt returns what the kernel said when it panicked, or last, without the frames of its
// stack.
func consoleExcerpt(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	var lines []string
	panicked := -1
	for line := range strings.Lines(string(data)) {
		line = strings.TrimRight(line, "\r\n")
		text := strings.TrimLeft(line, " ")
		if text == "" || strings.HasPrefix(text, "[<") || isStackDump(text) {
			continue
		}
		if panicked < 0 && strings.Contains(line, "Kernel panic") {
			panicked = len(lines)
		}
		lines = append(lines, "\t"+line)
	}
	if panicked >= 0 {
		lines = lines[:min(len(lines), panicked+2)]
	}
	return strings.Join(lines[max(0, len(lines)-10):], "\n")
}

// isStackDump recognizes a line of bare hexadecimal words.
func isStackDump(line string) bool {
	for _, word := range strings.Fields(line) {
		if len(word) != 8 && len(word) != 16 || strings.Trim(word, "0123456789abcdef") != "" {
			return false
		}
	}
	return true
}
