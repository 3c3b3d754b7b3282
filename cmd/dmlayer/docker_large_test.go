package main_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/test/treecmp"
)

// dockerLarge loads, runs, saves and loads again the large image with dockerd, and compares its tree with umoci's: test/docker/large.sh.
func dockerLarge(t *testing.T) {
	t.Helper()
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs("../../test/docker/large.sh")
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	for _, name := range []string{"dmlayer", "treecmp"} {
		if err := os.Symlink(self, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(20*time.Minute))
	defer cancel()
	// Mounts, containers and daemons end with their namespaces.
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", script, t.TempDir(),
		filepath.Join(cache, "images/large.docker.tar"), "large:latest")
	cmd.Env = append(os.Environ(), "PATH="+bin+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "ok again ") {
		t.Fatal(err)
	}
}

// compareTrees is what treecmp TREE UMOCIS is to large.sh.
func compareTrees(args []string) int {
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "treecmp: want two trees")
		return 2
	}
	differences, err := treecmp.Compare(args[0], args[1], treecmp.AgainstUmoci())
	if err != nil {
		fmt.Fprintln(os.Stderr, "treecmp:", err)
		return 2
	}
	fmt.Print(strings.Join(differences, "\n"))
	return min(len(differences), 1)
}
