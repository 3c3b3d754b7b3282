package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

// The units for systemd are what systemd takes, without a word of warning. They are tried in a folder of their own, with a program that is
// there.
func TestSystemdUnits(t *testing.T) {
	testenv.Need(t, testenv.Host) // systemd-analyze wants to write where a virtual machine has nothing to write to
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("needs systemd-analyze (Debian: apt install systemd)")
	}
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
		if err := os.WriteFile(path, []byte(strings.ReplaceAll(string(text), "/usr/local/bin/dmlayer", analyze)), 0o600); err != nil {
			t.Fatal(err)
		}
		args = append(args, path)
	}
	if out, err := exec.Command(analyze, args...).CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze: %v\n%s", err, out)
	}
}
