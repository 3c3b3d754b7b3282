package containerd_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// criSections are what docs/containerd.md has for Kubernetes, and beside that an image for the pause containers, as there is no registry here, and a folder for the
// network's plugins, of which there are none. The arguments are that folder and the root of dmlayer.
var criSections = map[string]string{
	"1.6": criSections1,
	"1.7": criExports + criSections1,
	"2.x": criExports + `
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "dmlayer"
  stats_collect_period = 1
[plugins."io.containerd.cri.v1.images".pinned_images]
  sandbox = "docker.io/library/pause:1"
[plugins."io.containerd.cri.v1.runtime".cni]
  conf_dir = %[1]q
`,
}

const (
	criExports = `
[proxy_plugins.dmlayer.exports]
  root = %[2]q
`
	criSections1 = `
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/pause:1"
  stats_collect_period = 1
[plugins."io.containerd.grpc.v1.cri".cni]
  conf_dir = %[1]q
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "dmlayer"
  disable_snapshot_annotations = false # %[2]q
`
)

// TestCRI asks containerd for what a kubelet asks it for, over the same interface: a pod of the host's network with a container, commands in it, its usage,
// restarts of everything in the middle, removal.
func TestCRI(t *testing.T) {
	for _, r := range releases {
		if r.name != "2.x" && os.Getenv("DMLAYER_TEST_LONG") == "" {
			continue
		}
		t.Run(r.name, func(t *testing.T) {
			r.cri = fmt.Sprintf(criSections[r.name], t.TempDir(), t.TempDir())
			h := newHost(t, r, pool.Spec{DataSize: 4 << 30})
			t.Cleanup(func() {
				if log := h.log(); t.Failed() {
					t.Logf("log of containerd, its end:\n%s", log[max(0, len(log)-8000):])
				}
			})
			small := imageFile(t, "small.docker.tar")
			load := append([]string{"-n", "k8s.io", "images", "import", "--snapshotter", "dmlayer"}, r.load...)
			h.ctr(append(load, pauseImage(t, small))...)
			h.ctr(append(load, small)...)
			if r.name == "1.6" {
				must(t, os.Mkdir(filepath.Join(h.dir, "root/io.containerd.snapshotter.v1.dmlayer"), 0o700))
			}
			(&kubelet{host: h, ctx: pooltest.Context(t)}).pod()
		})
	}
}

// pauseImage writes an archive with the files of another image, which waits until it is killed.
func pauseImage(t *testing.T, of string) string {
	t.Helper()
	img, err := tarball.ImageFromPath(of, nil)
	must(t, err)
	c, err := img.ConfigFile()
	must(t, err)
	c.Config.Entrypoint, c.Config.Cmd = []string{"/bin/sleep", "1000000"}, nil
	img, err = mutate.Config(img, c.Config)
	must(t, err)
	tag, err := name.NewTag("docker.io/library/pause:1")
	must(t, err)
	file := filepath.Join(t.TempDir(), "pause.tar")
	must(t, tarball.WriteToFile(file, tag, img))
	return file
}

// kubelet is a client of containerd's Kubernetes interface.
type kubelet struct {
	*host
	ctx     context.Context
	runtime cri.RuntimeServiceClient
	images  cri.ImageServiceClient
}

// connect waits until containerd answers, which takes longer here than for its own clients, and returns the function that ends the connection.
func (k *kubelet) connect() func() {
	conn, err := grpc.NewClient("unix:"+filepath.Join(k.dir, "c.sock"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(k.t, err)
	k.runtime, k.images = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	k.until("it answers", func() bool {
		_, err := k.runtime.Version(k.ctx, &cri.VersionRequest{})
		return err == nil
	})
	return func() { must(k.t, conn.Close()) }
}

func (k *kubelet) pod() {
	t, ctx := k.t, k.ctx
	defer k.connect()()
	image := &cri.ImageSpec{Image: "docker.io/library/small:latest"}
	k.until("the images are known", func() bool {
		pause, err := k.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "docker.io/library/pause:1"}})
		must(t, err)
		app, err := k.images.ImageStatus(ctx, &cri.ImageStatusRequest{Image: image})
		must(t, err)
		return pause.GetImage() != nil && app.GetImage() != nil
	})
	k.hasImageFS()
	config := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "1", Namespace: "default"}, LogDirectory: t.TempDir(),
		Linux: &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}},
	}
	pod, err := k.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config})
	must(t, err)
	id := pod.GetPodSandboxId()
	t.Cleanup(func() {
		if t.Failed() { // or it would keep its disk
			defer k.connect()()
			_, _ = k.runtime.StopPodSandbox(context.WithoutCancel(ctx), &cri.StopPodSandboxRequest{PodSandboxId: id})
		}
	})
	made, err := k.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, SandboxConfig: config, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app"}, Image: image, Command: []string{"/bin/sh", "-c", "echo started; while :; do sleep 1000; done"}, LogPath: "app.log",
		Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE}}},
	}})
	must(t, err)
	app := made.GetContainerId()
	_, err = k.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: app})
	must(t, err)
	k.exec(app, "echo one >/note && dd if=/dev/urandom of=/data/big bs=1M count=8 && sync", "")
	k.until("its usage is known", func() bool {
		s, err := k.runtime.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: app})
		must(t, err)
		return s.GetStats().GetWritableLayer().GetUsedBytes().GetValue() >= 8<<20
	})

	k.stopServe()
	k.serve()
	k.exec(app, "echo two >>/note", "")
	k.stop()
	k.start()
	defer k.connect()()
	k.exec(app, "cat /note", "one\ntwo\n")
	log, err := os.ReadFile(filepath.Join(config.LogDirectory, "app.log"))
	must(t, err)
	if !strings.Contains(string(log), "started") {
		t.Errorf("the container's log has %q", log)
	}

	_, err = k.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: app})
	must(t, err)
	_, err = k.runtime.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: app})
	must(t, err)
	_, err = k.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	must(t, err)
	_, err = k.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	must(t, err)
	for _, image := range []string{"docker.io/library/small:latest", "docker.io/library/pause:1"} {
		_, err = k.images.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}})
		must(t, err)
	}
	k.until("nothing is left in the pool", func() bool { return k.nodes() == 0 })
}

// hasImageFS checks that the folder by which containerd tells where images are is there: a kubelet asks how large its file system is.
func (k *kubelet) hasImageFS() {
	k.t.Helper()
	info, err := k.images.ImageFsInfo(k.ctx, &cri.ImageFsInfoRequest{})
	must(k.t, err)
	all := append(info.GetImageFilesystems(), info.GetContainerFilesystems()...)
	if len(all) == 0 {
		k.t.Error("containerd tells no file systems of images")
	}
	for _, fs := range all {
		if _, err := os.Stat(fs.GetFsId().GetMountpoint()); err != nil {
			k.t.Error(err)
		}
	}
}

// exec runs a shell's commands in a container.
func (k *kubelet) exec(id, script, want string) {
	k.t.Helper()
	out, err := k.runtime.ExecSync(k.ctx, &cri.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}})
	must(k.t, err)
	if out.GetExitCode() != 0 || want != "" && string(out.GetStdout()) != want {
		k.t.Errorf("%s: exit code %d, %q, %q, want %q", script, out.GetExitCode(), out.GetStdout(), out.GetStderr(), want)
	}
}

// until asks again; asking takes long enough for a pause.
func (k *kubelet) until(what string, is func() bool) {
	k.t.Helper()
	for !is() {
		if k.ctx.Err() != nil {
			k.t.Fatalf("not before the end of the test: %s\n%s", what, k.log())
		}
	}
}
