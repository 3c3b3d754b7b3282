package containerd_test

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/image"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// TestContainers goes through what users do with containerd: import, run, write, commit, restart of everything in the middle, removal.
func TestContainers(t *testing.T) {
	for _, r := range releases {
		for _, fs := range []string{"ext4", "xfs"} {
			if (r.long || (fs == "xfs") != (r.name == "2.x")) && os.Getenv("DMLAYER_TEST_LONG") == "" {
				continue // each release and each file system once; the long form has every pair, and 1.7
			}
			t.Run(r.name+"/"+fs, func(t *testing.T) {
				h := newHost(t, r, pool.Spec{FS: fs, DataSize: 4 << 30})
				h.containers(h.load(imageFile(t, "small.oci.tar")))
			})
		}
	}
}

// load imports an image and returns its name.
func (h *host) load(file string) string {
	h.t.Helper()
	h.ctr(append(append([]string{"images", "import", "--snapshotter", "dmlayer"}, h.r.load...), file)...)
	names := strings.Fields(h.ctr("images", "ls", "-q"))
	if len(names) == 0 {
		h.t.Fatal("no image after the import")
	}
	return names[0]
}

func (h *host) containers(image string) {
	t := h.t
	layers := h.nodes()
	if layers == 0 {
		t.Fatal("the import made no layers")
	}
	run := []string{"run", "--snapshotter", "dmlayer", "--runtime", "io.containerd.runc.v2"}
	if out := h.ctr(append(run, "--rm", image, "once", "/bin/sh", "-c", "echo x >/w && cat /w")...); strings.TrimSpace(out) != "x" {
		t.Errorf("the container said %q", out)
	}
	h.ctr(append(run, "-d", image, "one", "/bin/sh", "-c", "while :; do sleep 1000; done")...)
	t.Cleanup(func() {
		if t.Failed() { // or it would keep its disk
			_, _ = h.try("task", "kill", "-s", "KILL", "one")
			_, _ = h.try("task", "delete", "-f", "one")
		}
	})
	exec := func(id, script string) string {
		t.Helper()
		return strings.TrimSpace(h.ctr("task", "exec", "--exec-id", id, "one", "/bin/sh", "-c", script))
	}
	exec("e1", "echo one >/note && sync")
	key := h.snapshotOf("one")
	h.givesUp(key)
	before := h.ctr("snapshots", "--snapshotter", "dmlayer", "usage", "-b", key)

	h.stopServe()
	if got := exec("e2", "echo two >>/note && cat /note"); got != "one\ntwo" {
		t.Errorf("while serve is down the container has %q", got)
	}
	h.serve()
	h.stop()
	h.start()
	if got := exec("e3", "echo three >>/note && cat /note"); got != "one\ntwo\nthree" {
		t.Errorf("after the restarts the container has %q", got)
	}
	if !strings.Contains(before, key) {
		t.Errorf("usage says %q", before)
	}
	if h.r.diff { // of a container that runs: only our differ can do that
		h.differs(key)
	}
	h.ctr("task", "kill", "-s", "KILL", "one")
	h.ctr("task", "delete", "one")
	h.differs(key)
	h.ctr("snapshots", "--snapshotter", "dmlayer", "commit", "committed", key)
	h.ctr("snapshots", "--snapshotter", "dmlayer", "label", "committed", "containerd.io/gc.root=now")
	h.ctr("snapshots", "--snapshotter", "dmlayer", "prepare", "two", "committed")
	h.ctr("snapshots", "--snapshotter", "dmlayer", "view", "seen", "committed")
	h.holds("seen", "note", "one\ntwo\nthree\n")
	h.ctr("containers", "delete", "--keep-snapshot", "one")
	for _, key := range []string{"seen", "two"} { // of which the garbage collector may have been faster
		if _, err := h.try("snapshots", "--snapshotter", "dmlayer", "rm", key); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Error(err)
		}
	}
	// Where the collector took a child, 1.6 goes on to believe in it, and only the collector can remove the parent.
	h.ctr("snapshots", "--snapshotter", "dmlayer", "label", "committed", "containerd.io/gc.root=")
	h.ctr("images", "rm", "--sync", image)
	if n := h.nodes(); n != 0 {
		t.Errorf("%d nodes of %d are left when everything was removed:\n%s", n, layers, h.ctr("snapshots", "--snapshotter", "dmlayer", "ls"))
	}
}

// differs checks what is told of the changes of a snapshot.
func (h *host) differs(key string) {
	h.t.Helper()
	packed := h.ctr("snapshots", "--snapshotter", "dmlayer", "diff", "--keep=false", key)
	r, err := gzip.NewReader(strings.NewReader(packed))
	must(h.t, err)
	names := map[string]bool{}
	for archive := tar.NewReader(r); ; {
		entry, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(h.t, err)
		names[strings.Trim(entry.Name, "./")] = true
	}
	if !names["note"] || names["bin"] && len(names) > 20 {
		h.t.Errorf("the difference has %v", names)
	}
}

// givesUp waits until the xfs of a snapshot, which containerd has mounted, does not retry for ever what a full pool refuses.
func (h *host) givesUp(key string) {
	h.t.Helper()
	m := strings.Fields(h.ctr("snapshots", "--snapshotter", "dmlayer", "mounts", "/mnt", key))
	if m[2] != "xfs" {
		return
	}
	dev, err := filepath.EvalSymlinks(m[3])
	must(h.t, err)
	ctx := pooltest.Context(h.t)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		text, err := os.ReadFile(filepath.Join("/sys/fs/xfs", filepath.Base(dev), "error/metadata/EIO/max_retries"))
		must(h.t, err)
		if strings.TrimSpace(string(text)) == "0" {
			return
		}
		select {
		case <-ctx.Done():
			h.t.Fatalf("xfs on %s retries %s times", dev, text)
		case <-tick.C:
		}
	}
}

// snapshotOf returns the key of a container's snapshot.
func (h *host) snapshotOf(container string) string {
	h.t.Helper()
	for line := range strings.Lines(h.ctr("snapshots", "--snapshotter", "dmlayer", "ls")) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == container {
			return container
		}
	}
	h.t.Fatalf("no snapshot of container %s", container)
	return ""
}

// holds checks a file of a snapshot as its mounts show it.
func (h *host) holds(key, file, want string) {
	h.t.Helper()
	dir := h.t.TempDir()
	command := strings.ReplaceAll(strings.TrimSpace(h.ctr("snapshots", "--snapshotter", "dmlayer", "mounts", dir, key)), "-o  ", " ")
	out, err := h.program("sh", "-c", command).CombinedOutput()
	if err != nil {
		h.t.Fatalf("%s: %v: %s", command, err, out)
	}
	text, err := os.ReadFile(filepath.Join(dir, file))
	if out, uerr := h.program("umount", dir).CombinedOutput(); uerr != nil {
		h.t.Errorf("umount: %v: %s", uerr, out)
	}
	must(h.t, err)
	if string(text) != want {
		h.t.Errorf("%s of %s holds %q, want %q", file, key, text, want)
	}
}

// TestLayersThatAreThere imports an image whose layers image load has brought into the pool: nothing is unpacked, in any namespace.
func TestLayersThatAreThere(t *testing.T) {
	h := newHost(t, releases[1], pool.Spec{DataSize: 4 << 30})
	ctx := pooltest.Context(t)
	file := imageFile(t, "small.oci.tar")
	_, err := image.Load(ctx, h.store, file, image.LoadOptions{})
	must(t, err)
	loaded := h.nodes()
	for _, namespace := range []string{"default", "other"} {
		h.ctr("-n", namespace, "images", "import", file) // by the transfer service, which says what it is going to unpack
		if n := h.nodes(); n != loaded {
			t.Errorf("%s: %d nodes, %d after image load", namespace, n, loaded)
		}
		name := strings.Fields(h.ctr("-n", namespace, "images", "ls", "-q"))[0]
		out := h.ctr("-n", namespace, "run", "--rm", "--snapshotter", "dmlayer", name, "c", "/bin/sh", "-c", "echo runs")
		if strings.TrimSpace(out) != "runs" {
			t.Errorf("%s: the container said %q", namespace, out)
		}
		h.ctr("-n", namespace, "images", "rm", "--sync", name)
	}
	if n := h.nodes(); n != loaded {
		t.Errorf("%d nodes, %d after image load: containerd has removed layers that the image needs", n, loaded)
	}
	must(t, h.store.View(ctx, []string{h.top(ctx)}, func(context.Context, []string) error { return nil }))
}

// top returns the highest layer of the only image.
func (h *host) top(ctx context.Context) string {
	docs, err := h.store.Documents(ctx, "image")
	must(h.t, err)
	layers := docs[0].Layers
	n, err := h.store.Get(ctx, layers[len(layers)-1])
	must(h.t, err)
	if n.Kind != layer.KindLayer {
		h.t.Errorf("%q is a %s", n.Name, n.Kind)
	}
	return n.Name
}
