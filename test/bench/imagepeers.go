package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
)

// containerd is a running daemon with an overlayfs and a devmapper snapshotter.
type containerd struct {
	*imagesBench
	socket string
	daemon *exec.Cmd
	tar    string // the archive to import
	layers int    // of it
	proxy  string // socket of dmlayer serve; "" is none
}

const (
	peerPool      = "bench-peers"
	peersPoolSize = 4 << 30

	// appliedByAll are the layers of the large image that containerd unpacks with overlayfs: the next one has a
	// hard link to a file of a lower layer, which it looks for in the new layer only. Those left out are tiny.
	appliedByAll = 6
)

// withContainerd runs fn with a containerd whose folder is on a file system like the floor's.
func (b *imagesBench) withContainerd(ctx context.Context, proxy string, fn func(*containerd) error) error {
	return b.withMount(ctx, "peers", nil, func(dir string) error {
		return b.withPeerPool(ctx, func() error {
			c := &containerd{imagesBench: b, socket: b.peerSocket(), proxy: proxy}
			if err := c.choose(); err != nil {
				return err
			}
			if err := c.start(dir); err != nil {
				return err
			}
			defer c.stop()
			if err := c.ready(ctx); err != nil {
				return err
			}
			return fn(c)
		})
	})
}

// peerSocket is where the daemon listens.
func (b *imagesBench) peerSocket() string { return filepath.Join(b.dirs.Run, "containerd.sock") }

// choose finds what to import: the image, or what of it containerd can unpack.
func (c *containerd) choose() error {
	layers, err := layersOf(c.layout)
	if err != nil {
		return err
	}
	c.tar, c.layers = c.imagesBench.tar, len(layers)
	if c.image != "large" {
		return nil
	}
	c.tar, c.layers = filepath.Join(filepath.Dir(c.layout), "peers.tar"), appliedByAll
	return cut(c.layout, c.tar, c.layers)
}

// withPeerPool runs fn with a thin pool for the devmapper snapshotter, made as its documentation says.
func (b *imagesBench) withPeerPool(ctx context.Context, fn func() error) (err error) {
	var devices []string
	for _, d := range []struct {
		name string
		size int64
	}{{"metadata", 64 << 20}, {"data", peersPoolSize}} {
		file := filepath.Join(b.work, "peers."+d.name)
		if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, d.size)); err != nil {
			return err
		}
		loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: file, Autoclear: true})
		if err != nil {
			return err
		}
		defer loop.Close()
		devices = append(devices, loop.Path)
	}
	table := fmt.Sprintf("0 %d thin-pool %s %s 128 32768 1 skip_block_zeroing", peersPoolSize/512, devices[0], devices[1])
	if out, err := exec.CommandContext(ctx, "dmsetup", "create", peerPool, "--table", table).CombinedOutput(); err != nil {
		return fmt.Errorf("dmsetup create: %w: %s", err, out)
	}
	defer func() { err = errors.Join(err, removePeerDevices(ctx)) }()
	return fn()
}

// removePeerDevices removes the pool and what the snapshotter left on it.
func removePeerDevices(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "dmsetup", "ls").Output()
	if err != nil {
		return err
	}
	var names []string
	for line := range strings.Lines(string(out)) {
		if name, _, _ := strings.Cut(line, "\t"); strings.HasPrefix(name, peerPool+"-") {
			names = append(names, name)
		}
	}
	for _, name := range append(names, peerPool) {
		if out, err := exec.CommandContext(ctx, "dmsetup", "remove", name).CombinedOutput(); err != nil {
			return fmt.Errorf("dmsetup remove %s: %w: %s", name, err, out)
		}
	}
	return nil
}

func (c *containerd) start(dir string) error {
	config := fmt.Sprintf(`version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.nri.v1.nri"]
[grpc]
address = %q
[plugins."io.containerd.snapshotter.v1.devmapper"]
pool_name = %q
root_path = %q
base_image_size = "10GB"
`, filepath.Join(dir, "root"), filepath.Join(c.dirs.Run, "containerd"), c.socket, peerPool, filepath.Join(dir, "devmapper"))
	config += c.proxies()
	file := filepath.Join(c.dirs.Run, "containerd.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(c.dirs.Run, "containerd.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	c.daemon = exec.Command(filepath.Join(c.peers, "containerd"), "--config", file)
	c.daemon.Stdout, c.daemon.Stderr = log, log
	return c.daemon.Start()
}

// proxies configures dmlayer as docs/containerd.md says. Garbage is collected when something is removed, and never because of what else is done:
// that would be measured too.
func (c *containerd) proxies() string {
	if c.proxy == "" {
		return ""
	}
	return fmt.Sprintf(`[plugins."io.containerd.gc.v1.scheduler"]
mutation_threshold = 0
deletion_threshold = 1000000
startup_delay = "1ms"
pause_threshold = 0.0000001
[plugins."io.containerd.service.v1.diff-service"]
default = ["dmlayer-diff", "walking"]
[proxy_plugins.dmlayer]
type = "snapshot"
address = %q
[proxy_plugins.dmlayer-diff]
type = "diff"
address = %q
`, c.proxy, c.proxy)
}

// ready waits until the daemon answers. Starting ctr takes long enough for a pause.
func (c *containerd) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		out, err := c.ctr(ctx, "version").CombinedOutput()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			log, _ := os.ReadFile(filepath.Join(c.dirs.Run, "containerd.log"))
			return fmt.Errorf("containerd does not answer: %w: %s\n%s", err, out, log)
		}
	}
}

func (c *containerd) stop() {
	_ = c.daemon.Process.Signal(unix.SIGTERM)
	_ = c.daemon.Wait() // its exit code is that of a signal
}

func (c *containerd) ctr(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(c.peers, "ctr"), append([]string{"--address", c.socket}, args...)...)
}

// round imports and unpacks the image, and removes it with its content and its snapshots.
func (c *containerd) round(snapshotter string) func(context.Context, *loadTimer) error {
	return func(ctx context.Context, t *loadTimer) error {
		if err := t.timed("import", c.ctr(ctx, "images", "import", "--local", "--snapshotter", snapshotter, c.tar)); err != nil {
			return err
		}
		if err := c.unpacked(ctx, snapshotter); err != nil {
			return err
		}
		rss, err := peakOf(c.daemon.Process.Pid)
		if err != nil {
			return err
		}
		t.peak("import", rss)
		out, err := c.ctr(ctx, "images", "ls", "--quiet").Output()
		if err != nil {
			return err
		}
		return program(c.ctr(ctx, append([]string{"images", "rm", "--sync"}, strings.Fields(string(out))...)...))
	}
}

// unpacked makes sure that the import did all of the work.
func (c *containerd) unpacked(ctx context.Context, snapshotter string) error {
	out, err := c.ctr(ctx, "snapshots", "--snapshotter", snapshotter, "ls").Output()
	if err != nil {
		return err
	}
	if n := bytes.Count(out, []byte("Committed")); n != c.layers {
		return fmt.Errorf("%d snapshots of %d layers", n, c.layers)
	}
	return nil
}

// peakOf returns the most memory, in bytes, that a process has had.
func peakOf(pid int) (int64, error) { return memoryOf(pid, "VmHWM") }

// memoryOf returns a figure of /proc/PID/status in bytes.
func memoryOf(pid int, field string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), field+":")
	var kib int64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		return 0, fmt.Errorf("%s of process %d: %w", field, pid, err)
	}
	return kib << 10, nil
}
