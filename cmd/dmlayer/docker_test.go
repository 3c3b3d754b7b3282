package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

// TestDocker does with dockerd what Docker's users do, as the tutorials type it: test/docker/flows.sh. DMLAYER_DOCKER_LONG=1 does all of it.
func TestDocker(t *testing.T) {
	testenv.Need(t, testenv.Guest, testenv.DM, testenv.Loop, testenv.Ext4, testenv.Images, testenv.Docker)
	if os.Getenv("DMLAYER_DOCKER_LONG") == "" {
		dockerFlows(t, "docker", nil, "size", "kill_dmlayer")
		return
	}
	dockerFlows(t, "docker", nil)
	dockerLarge(t)
}

// TestDocker29 does the same with Docker 29, which keeps images in containerd: test/docker29/flows.sh.
func TestDocker29(t *testing.T) {
	testenv.Need(t, testenv.Guest, testenv.DM, testenv.Loop, testenv.Ext4, testenv.Images, testenv.Containerd, testenv.Clients)
	dockerFlows(t, "docker29", []string{"gotools/docker29-v2.0.0-beta.24", "gotools/containerd-v2.4.2"})
}

// dockerFlows runs flows.sh of a folder of test, with folders of programs below .cache before those of PATH.
func dockerFlows(t *testing.T, folder string, programs []string, flows ...string) {
	t.Helper()
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err := filepath.Abs(filepath.Join("../../test", folder, "flows.sh"))
	if err != nil {
		t.Fatal(err)
	}
	bin, dir := t.TempDir(), t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, "dmlayer")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(20*time.Minute))
	defer cancel()
	// Mounts, containers and daemons end with their namespaces.
	args := []string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", script, dir, filepath.Join(cache, "images/small.docker.tar"), "small:latest"}
	cmd := exec.CommandContext(ctx, "unshare", append(args, flows...)...)
	path := []string{bin}
	for _, dir := range programs {
		path = append(path, filepath.Join(cache, dir))
	}
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(append(path, os.Getenv("PATH")), string(os.PathListSeparator)))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	for _, flow := range append(flows, "images", "remove") {
		if !strings.Contains(string(out), "ok "+flow+" ") {
			t.Errorf("%s was not done", flow)
		}
	}
}
