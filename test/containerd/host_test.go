package containerd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/backend/containerd"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/service"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// release is a version of containerd.
type release struct {
	name string
	bin  string   // folder of its programs, below .cache
	load []string // arguments of ctr's import that make the client unpack
	diff bool     // it has proxy plugins for differences
	long bool     // it takes minutes to build, and is tried in the long form only
	cri  string   // sections of the configuration for Kubernetes; without any, what serves it is off
}

var releases = []release{
	{name: "1.6", bin: "tools/usr/bin"},
	{name: "2.x", bin: "gotools/containerd-v2.4.2", load: []string{"--local"}, diff: true},
	{name: "1.7", bin: "gotools/containerd-v1.7.35", diff: true, long: true},
}

// host is a machine with a pool, dmlayer serve and containerd.
type host struct {
	t     *testing.T
	r     release
	pool  *pooltest.Env
	store *layer.Store // of the test, beside that of serve
	dir   string
	path  string // of programs

	stopServe func()
	daemon    *exec.Cmd
}

func newHost(t *testing.T, r release, spec pool.Spec) *host {
	t.Helper()
	testenv.Need(t, testenv.Guest, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.XFS, testenv.Images, testenv.Containerd)
	if r.long {
		testenv.Need(t, testenv.Clients)
	}
	cache, err := testenv.CacheDir()
	must(t, err)
	h := &host{t: t, r: r, pool: pooltest.New(t, spec)}
	h.store = h.pool.Open(t)
	h.dir = t.TempDir()
	h.path = filepath.Join(cache, r.bin) + ":" + filepath.Join(cache, "tools/usr/bin") + ":" + filepath.Join(cache, "tools/usr/sbin") + ":" + os.Getenv("PATH")
	mountCgroups(t)
	h.serve()
	t.Cleanup(func() { h.stopServe() })
	h.start()
	t.Cleanup(func() { h.stop() })
	return h
}

// mountCgroups mounts the one hierarchy that runc wants.
func mountCgroups(t *testing.T) {
	t.Helper()
	var st unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return
	}
	must(t, unix.Mount("cgroup2", "/sys/fs/cgroup", "cgroup2", 0, ""))
	t.Cleanup(func() { must(t, unix.Unmount("/sys/fs/cgroup", unix.MNT_DETACH)) })
}

func (h *host) socket() string { return filepath.Join(h.dir, "dmlayer", "containerd.sock") }

// serve does what dmlayer serve --containerd does.
func (h *host) serve() {
	ctx, cancel := context.WithCancel(context.Background())
	opened, ended := make(chan struct{}), make(chan error, 1)
	open := func(ctx context.Context, s *layer.Store) (service.Endpoint, error) {
		e, err := containerd.Open(ctx, s, h.socket(), filepath.Join(h.dir, "c.sock"))
		if err == nil {
			close(opened)
		}
		return e, err
	}
	go func() {
		ended <- service.Run(ctx, service.Config{Dirs: h.pool.Dirs, Pool: h.pool.Name, Endpoints: []service.Opener{open}})
	}()
	select {
	case <-opened:
	case err := <-ended:
		cancel()
		h.t.Fatalf("serve: %v", err)
	}
	h.stopServe = func() {
		cancel()
		if err := <-ended; err != nil {
			h.t.Errorf("serve: %v", err)
		}
		h.stopServe = func() {}
	}
}

func (h *host) start() {
	h.t.Helper()
	off := []string{"io.containerd.nri.v1.nri", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.zfs",
		"io.containerd.snapshotter.v1.devmapper"}
	if h.r.cri == "" {
		off = append(off, "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")
	}
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["%s"]
[grpc]
address = %q
[proxy_plugins.dmlayer]
type = "snapshot"
address = %q
[plugins."io.containerd.transfer.v1.local"]
unpack_config = [{platform = "linux/amd64", snapshotter = "dmlayer", differ = "`+h.transferDiffer()+`"}]
`+h.diffConfig()+h.r.cri, filepath.Join(h.dir, "root"), filepath.Join(h.dir, "state"), strings.Join(off, `", "`), filepath.Join(h.dir, "c.sock"), h.socket())
	file := filepath.Join(h.dir, "config.toml")
	must(h.t, os.WriteFile(file, []byte(config), 0o600))
	log, err := os.OpenFile(filepath.Join(h.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(h.t, err)
	defer log.Close()
	h.daemon = h.program("containerd", "--config", file)
	h.daemon.Stdout, h.daemon.Stderr = log, log
	must(h.t, h.daemon.Start())
	ctx, cancel := context.WithTimeout(h.t.Context(), testenv.Scale(30_000_000_000))
	defer cancel()
	for { // asking takes long enough for a pause
		if h.program("ctr", "--address", filepath.Join(h.dir, "c.sock"), "version").Run() == nil {
			return
		}
		if ctx.Err() != nil {
			h.t.Fatalf("containerd does not answer:\n%s", h.log())
		}
	}
}

// transferDiffer is who unpacks for the transfer service.
func (h *host) transferDiffer() string {
	if h.r.diff {
		return "dmlayer-diff"
	}
	return "walking"
}

// diffConfig has our differ asked first.
func (h *host) diffConfig() string {
	if !h.r.diff {
		return ""
	}
	return fmt.Sprintf(`[proxy_plugins.dmlayer-diff]
type = "diff"
address = %q
[plugins."io.containerd.service.v1.diff-service"]
default = ["dmlayer-diff", "walking"]
`, h.socket())
}

func (h *host) log() []byte {
	log, _ := os.ReadFile(filepath.Join(h.dir, "log"))
	return log
}

func (h *host) stop() {
	if h.daemon == nil {
		return
	}
	_ = h.daemon.Process.Signal(unix.SIGTERM)
	_ = h.daemon.Wait() // its exit code is that of a signal
	h.daemon = nil
}

func (h *host) program(name string, args ...string) *exec.Cmd {
	for dir := range strings.SplitSeq(h.path, ":") {
		if at := filepath.Join(dir, name); unix.Access(at, unix.X_OK) == nil {
			name = at
			break
		}
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+h.path, "CONTAINERD_SNAPSHOTTER=dmlayer")
	return cmd
}

// ctr runs the client, which must succeed, and returns what it printed.
func (h *host) ctr(args ...string) string {
	h.t.Helper()
	out, err := h.try(args...)
	if err != nil {
		log := h.log()
		h.t.Fatalf("ctr %s: %v\n%s\nlog of containerd, its end:\n%s", strings.Join(args, " "), err, out, log[max(0, len(log)-4000):])
	}
	return out
}

func (h *host) try(args ...string) (string, error) {
	cmd := h.program("ctr", append([]string{"--address", filepath.Join(h.dir, "c.sock")}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, errOut.String())
	}
	return out.String(), err
}

// nodes counts the nodes of the pool.
func (h *host) nodes() int {
	h.t.Helper()
	all, err := h.store.List(pooltest.Context(h.t))
	must(h.t, err)
	return len(all)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// imageFile returns one of scripts/images.
func imageFile(t *testing.T, name string) string {
	t.Helper()
	cache, err := testenv.CacheDir()
	must(t, err)
	file := filepath.Join(cache, "images", name)
	if _, err := os.Stat(file); err != nil {
		t.Fatal(errors.Join(err, errors.New("scripts/images makes it")))
	}
	return file
}
