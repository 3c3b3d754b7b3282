package vmexec

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// stdinMode says how the job's standard input reaches it.
type stdinMode string

const (
	stdinNone   stdinMode = "none"   // /dev/null
	stdinFramed stdinMode = "framed" // frames over a console of its own, see frame.go
	stdinTTY    stdinMode = "tty"    // the job's terminal is the user's terminal
)

// job is what the guest has to do. It travels as JSON in the share.
type job struct {
	Args         []string
	Env          []string
	Dir          string
	Work         string   // where the guest puts its big tmpfs; TMPDIR of the job
	ModuleTree   string   // folder that holds lib/modules, "" for the host's own
	Modules      []string // to be loaded before the job starts
	LibraryCache string   // ld.so.cache that also knows the unpacked libraries, or ""
	Writable     []string // host folders that the guest may write to
	Stdin        stdinMode
	Consoles     [3]string // see backend
	Merged       bool      // standard error goes where standard output goes
	CheckLeaks   bool
	Rows, Cols   uint16 // of the terminal, with stdinTTY
}

// result is what the guest says at its end. The runner writes a zero one first.
type result struct {
	Done  bool // the job was started and has ended
	Code  int  // exit code, 128+n for a signal
	Error string
	Leaks []string
}

const (
	jobFile    = "job.json"
	resultFile = "result.json"
)

func writeJSON(dir, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if errSync := f.Sync(); err == nil {
		err = errSync
	}
	if errClose := f.Close(); err == nil {
		err = errClose
	}
	return err
}

func readJSON(dir, name string, v any) error {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", name, err)
	}
	return nil
}
