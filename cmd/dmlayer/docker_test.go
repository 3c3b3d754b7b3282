package main_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/dmlayer/dmlayer/internal/testenv"
)

// TestDocker does with dockerd what Docker's users do, as the tutorials type it: test/docker/flows.sh. DMLAYER_DOCKER_LONG=1 does all of it,
// DMLAYER_DOCKER_FLOWS="save size" these flows only, and "large" is the large image.
func TestDocker(t *testing.T) {
	testenv.Need(t, testenv.Guest, testenv.DM, testenv.Loop, testenv.Ext4, testenv.Images, testenv.Docker)
	if flows := strings.Fields(os.Getenv("DMLAYER_DOCKER_FLOWS")); len(flows) > 0 {
		small := slices.DeleteFunc(slices.Clone(flows), func(f string) bool { return f == "large" })
		if len(small) > 0 {
			dockerFlows(t, "docker", nil, small...)
		}
		if len(small) < len(flows) {
			dockerLarge(t)
		}
		return
	}
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

// TestNewUser gets from nothing to a running container with what docs/containerd.md says: test/containerd/newuser.sh.
func TestNewUser(t *testing.T) {
	testenv.Need(t, testenv.Guest, testenv.DM, testenv.Loop, testenv.Ext4, testenv.Images, testenv.Containerd)
	img, err := tarball.ImageFromPath(cached(t, "images/small.docker.tar"), nil)
	if err != nil {
		t.Fatal(err)
	}
	app, err := name.NewTag("docker.io/library/app:latest")
	if err != nil {
		t.Fatal(err)
	}
	archive := filepath.Join(t.TempDir(), "archive")
	if err := tarball.WriteToFile(archive, app, img); err != nil {
		t.Fatal(err)
	}
	document, err := filepath.Abs("../../docs/containerd.md")
	if err != nil {
		t.Fatal(err)
	}
	said := runScript(t, []string{"gotools/containerd-v2.4.2"}, "containerd/newuser.sh", document, archive)
	if !strings.HasSuffix(said, "ok\n") {
		t.Error("it was not done to the end")
	}
}

// dockerFlows runs flows.sh of a folder of test.
func dockerFlows(t *testing.T, folder string, programs []string, flows ...string) {
	t.Helper()
	said := runScript(t, programs, folder+"/flows.sh", append([]string{cached(t, "images/small.docker.tar"), "small:latest"}, flows...)...)
	for _, flow := range append(flows, "images", "remove") {
		if !strings.Contains(said, "ok "+flow+" ") {
			t.Errorf("%s was not done", flow)
		}
	}
}

// runScript runs a script of test with an empty folder and more arguments, in name spaces of its own, with which what it mounts and starts ends. Folders of programs
// below .cache come before those of PATH, and before them the program that is tested.
func runScript(t *testing.T, programs []string, script string, args ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	script, err = filepath.Abs(filepath.Join("../../test", script))
	if err != nil {
		t.Fatal(err)
	}
	bin := t.TempDir()
	if err := os.Symlink(self, filepath.Join(bin, "dmlayer")); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), testenv.Scale(20*time.Minute))
	defer cancel()
	all := append([]string{"--mount", "--pid", "--fork", "--kill-child", "--mount-proc", script, t.TempDir()}, args...)
	cmd := exec.CommandContext(ctx, "unshare", all...)
	path := []string{bin}
	for _, dir := range programs {
		path = append(path, cached(t, dir))
	}
	cmd.Env = append(os.Environ(), "PATH="+strings.Join(append(path, os.Getenv("PATH")), string(os.PathListSeparator)))
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// cached returns the path of what the scripts have put below .cache.
func cached(t *testing.T, path string) string {
	t.Helper()
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(cache, path)
}
