package test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

// The units for systemd are what systemd takes, without a word of warning. They are tried in a folder of their own, with a program that is
// there.
func TestSystemdUnits(t *testing.T) {
	testenv.Need(t, testenv.Host, testenv.Systemd) // systemd-analyze wants to write where a virtual machine has nothing to write to
	files, err := filepath.Glob("../systemd/*")
	if err != nil || len(files) < 4 {
		t.Fatalf("units: %v, %v", files, err)
	}
	dir := t.TempDir()
	args := []string{"verify", "--man=no"}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		name := strings.Replace(filepath.Base(file), "@.", "@fast.", 1)
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/dmlayer", "/bin/true")), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	analyze := testenv.Tool(t.Context(), "systemd-analyze", args...)
	// The units of the systemd that it belongs to, which need not be the machine's.
	analyze.Env = append(analyze.Env, "SYSTEMD_UNIT_PATH="+filepath.Join(filepath.Dir(analyze.Path), "../lib/systemd/system"))
	if out, err := analyze.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
