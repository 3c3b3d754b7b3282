package graphdriver_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

func decode(stream io.ReadCloser, into any) error {
	return errors.Join(json.NewDecoder(stream).Decode(into), stream.Close())
}

// TestLife does what Docker does with an image of two layers and a container of it.
func TestLife(t *testing.T) {
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			d := newDocker(t, pool.Spec{FS: fs})
			d.init()
			if d.call("Capabilities", graphRequest{}).Capabilities.ReproducesExactDiffs {
				t.Error("Docker must keep the tar's headers itself")
			}
			d.layer("base", "", map[string]string{"a": "1", "b": "2"})
			d.layer("top", "base", map[string]string{".wh.b": "", "c": "33"})
			if n, err := d.store.Get(pooltest.Context(t), "docker-top"); err != nil || n.Kind != layer.KindLayer || n.Parent != "docker-base" {
				t.Errorf("%+v, %v", n, err)
			}
			// A layer is mounted read-only, to be read again for docker save.
			dir := d.get("top")
			if err := os.WriteFile(filepath.Join(dir, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
				t.Errorf("write to a layer: %v", err)
			}
			d.put("top")

			dir = d.container("c", "top", nil)
			if fi, err := os.Stat(dir); err != nil || fi.Mode() != os.ModeDir|0o755 {
				t.Errorf("root: %v, %v", fi, err)
			}
			must(t, os.WriteFile(filepath.Join(dir, "c"), []byte("changed"), 0o644))
			must(t, os.Remove(filepath.Join(dir, "a")))
			must(t, os.Mkdir(filepath.Join(dir, "new"), 0o755))
			must(t, os.WriteFile(filepath.Join(dir, "new", "n"), []byte("new"), 0o644))
			// While it runs.
			want := map[string]int{"/a": 2, "/c": 0, "/new": 1, "/new/n": 1}
			have := map[string]int{}
			for _, c := range d.call("Changes", graphRequest{ID: "c", Parent: "c-init"}).Changes {
				have[c.Path] = c.Kind
			}
			if !maps.Equal(have, want) {
				t.Errorf("changes %v, want %v", have, want)
			}
			if size := d.call("DiffSize", graphRequest{ID: "c", Parent: "c-init"}).Size; size != 10 {
				t.Errorf("size %d", size)
			}
			diff := d.diff("c", "c-init")
			if !maps.Equal(diff, map[string]string{".wh.a": "", "c": "changed", "new/": "", "new/n": "new"}) && !maps.Equal(diff, map[string]string{"./": "", ".wh.a": "", "c": "changed", "new/": "", "new/n": "new"}) {
				t.Errorf("diff %q", diff)
			}
			// Counted: a second Get, and it stays mounted after one Put.
			if again := d.get("c"); again != dir {
				t.Errorf("mounted on %s and %s", dir, again)
			}
			d.put("c")
			mounted(t, d, "c", true)
			m := d.call("GetMetadata", graphRequest{ID: "c"}).Metadata
			if m["Node"] != "docker-c" || m["Pool"] != pooltest.PoolName || !strings.HasPrefix(m["DeviceName"], "/dev/") || m["DeviceSize"] != "1073741824" {
				t.Errorf("metadata %v", m)
			}
			d.put("c")
			mounted(t, d, "c", false)

			// What has children stays.
			for _, id := range []string{"base", "top", "c-init"} {
				_, err := d.try("Remove", graphRequest{ID: id})
				mustFail(t, err, "is needed by")
			}
			for _, id := range []string{"c", "c-init", "top", "base"} {
				if !d.exists(id) {
					t.Errorf("%s does not exist", id)
				}
				d.call("Remove", graphRequest{ID: id})
				d.call("Remove", graphRequest{ID: id}) // again is no error
				if d.exists(id) {
					t.Errorf("%s exists", id)
				}
			}
			if left := d.nodes(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		})
	}
}

func mounted(t testing.TB, d *docker, id string, want bool) {
	t.Helper()
	i, err := d.store.Inspect(pooltest.Context(t), "docker-"+id)
	must(t, err)
	if (i.State == layer.StateMounted) != want || !want && i.State != layer.StateInactive {
		t.Errorf("%s is %s", id, i.State)
	}
}

// TestPending: a layer is nothing but a promise until it has content, and a part of a stream is no content.
func TestPending(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	d.layer("base", "", map[string]string{"a": "1"})
	whole := archive(t, map[string]string{"x": strings.Repeat("x", 300_000)})

	d.call("Create", graphRequest{ID: "p", Parent: "base"})
	if !d.exists("p") || slices.Contains(d.nodes(), "docker-p") {
		t.Errorf("exists %v, nodes %v", d.exists("p"), d.nodes())
	}
	d.put("p")
	_, err := d.try("Create", graphRequest{ID: "p", Parent: "base"})
	mustFail(t, err, "already exists")
	_, err = d.try("CreateReadWrite", graphRequest{ID: "p", Parent: "base"})
	mustFail(t, err, "already exists")
	_, err = d.apply("p", "base", bytes.NewReader(nil))
	mustFail(t, err, "the stream is empty")
	_, err = d.apply("p", "base", bytes.NewReader(whole[:100_000]))
	mustFail(t, err, "fill layer")
	// What is left of the stream is not taken for a layer.
	_, err = d.apply("p", "base", bytes.NewReader(whole))
	mustFail(t, err, "load or pull the image again")
	if d.exists("p") || slices.Contains(d.nodes(), "docker-p") {
		t.Error("something is left of a layer that failed")
	}
	d.call("Remove", graphRequest{ID: "p"})

	// So it is with a process that has not seen the beginning.
	d.call("Create", graphRequest{ID: "q", Parent: "base"})
	other := serve(t, d.e)
	_, err = other.apply("q", "base", bytes.NewReader(whole))
	mustFail(t, err, "load or pull the image again")
	if _, err := d.apply("q", "base", bytes.NewReader(whole)); err != nil {
		t.Error(err)
	}
	_, err = d.apply("q", "base", bytes.NewReader(whole))
	mustFail(t, err, "filled already")

	// Whatever uses it before makes it a node that can be written to, as BuildKit does, and it may get content all the same.
	d.call("Create", graphRequest{ID: "w", Parent: "q"})
	dir := d.get("w")
	must(t, os.WriteFile(filepath.Join(dir, "w"), []byte("w"), 0o644))
	d.put("w")
	if _, err := d.apply("w", "q", bytes.NewReader(archive(t, map[string]string{"more": "more"}))); err != nil {
		t.Error(err)
	}
	diff := d.diff("w", "q")
	delete(diff, "./")
	if !maps.Equal(diff, map[string]string{"w": "w", "more": "more"}) {
		t.Errorf("diff %q", diff)
	}
	// A layer on top of one that can be written to.
	d.layer("v", "w", map[string]string{"v": "v"})
	d.call("Create", graphRequest{ID: "u", Parent: "v"})
	d.call("Create", graphRequest{ID: "t", Parent: "u"})
	for _, id := range []string{"t", "u", "v", "w", "q", "base"} {
		d.call("Remove", graphRequest{ID: id})
	}
}

// TestBrokenStream: a client that goes away in the middle leaves nothing.
func TestBrokenStream(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	d.call("Create", graphRequest{ID: "p"})
	r, w := io.Pipe()
	go func() {
		_, _ = w.Write(archive(t, map[string]string{"x": strings.Repeat("x", 100_000)})[:50_000])
		_ = w.CloseWithError(io.ErrClosedPipe)
	}()
	_, err := d.apply("p", "", r)
	mustFail(t, err, "closed pipe")
	d.call("Remove", graphRequest{ID: "p"}) // waits for what was at work
	if left := d.nodes(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	// A stream that is going out breaks where what it is of cannot be read, instead of ending.
	d.layer("l", "", map[string]string{"f": strings.Repeat("f", 10)})
	_, err = d.Post("GraphDriver.Diff", strings.NewReader(`{"ID":"l","Parent":"none"}`))
	mustFail(t, err, "not found")
	d.call("Remove", graphRequest{ID: "l"})
}

// TestSize: a cap is met as ENOSPC, and nothing shrinks.
func TestSize(t *testing.T) {
	d := newDocker(t, pool.Spec{BaseSize: 32 << 20})
	d.init("dm.basesize=48M")
	d.layer("base", "", map[string]string{"a": "1"})
	dir := d.container("c", "base", map[string]string{"size": "64M"})
	if size, err := pooltest.FSSize(dir); err != nil || size < 48<<20 || size > 64<<20 {
		t.Errorf("size %d, %v", size, err)
	}
	err := os.WriteFile(filepath.Join(dir, "big"), make([]byte, 64<<20), 0o600)
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("beyond the cap: %v", err)
	}
	d.put("c")
	for text, options := range map[string]map[string]string{
		"below that of parent": {"size": "16M"}, "unknown": {"sise": "1G"}, "such as 20G": {"size": "much"},
	} {
		_, err := d.try("CreateReadWrite", graphRequest{ID: "d", Parent: "base", StorageOpt: options})
		mustFail(t, err, text)
	}
	_, err = d.try("Create", graphRequest{ID: "d", Parent: "base", StorageOpt: map[string]string{"size": "1G"}})
	mustFail(t, err, "no storage options")
	// A larger base size is the least of what is made from now on; another process knows it.
	d.init("dm.basesize=100M")
	other := serve(t, d.e)
	other.call("CreateReadWrite", graphRequest{ID: "d", Parent: "base"})
	if m := other.call("GetMetadata", graphRequest{ID: "d"}).Metadata; m["DeviceSize"] != "104857600" {
		t.Errorf("metadata %v", m)
	}
}

// TestRestart: counts outlive the process, and what an earlier Docker was doing itself is over when one starts.
func TestRestart(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	d.init()
	d.layer("base", "", map[string]string{"a": "1"})
	d.container("c", "base", nil)
	d.get("c")
	d.get("base")
	other := serve(t, d.e)
	other.put("c")
	mounted(t, d, "c", true)
	other.get("c")
	// Docker was killed and starts again: the container may run, nobody reads the layer any more.
	other.init()
	mounted(t, d, "c", true)
	mounted(t, d, "base", false)
	other.put("c")
	mounted(t, d, "c", false)
	other.put("c") // once too often does no harm

	// What was mounted when the machine went down is not.
	d.get("c")
	must(t, d.store.Unmount(pooltest.Context(t), "docker-c"))
	d.put("c")

	// Docker removes what it has not put back: it is unmounted, unless somebody is in it.
	dir := d.get("c")
	f, err := os.Open(filepath.Join(dir, "a"))
	must(t, err)
	_, err = d.try("Remove", graphRequest{ID: "c"})
	mustFail(t, err, "busy")
	must(t, f.Close())
	d.call("Remove", graphRequest{ID: "c"})

	// When Docker ends, what nobody is in goes.
	d.get("base")
	d.call("Cleanup", graphRequest{})
	mounted(t, d, "base", false)
}

// TestForbidDevices: what the pool keeps out of its layers stays out.
func TestForbidDevices(t *testing.T) {
	d := newDocker(t, pool.Spec{ForbidDevices: true})
	d.call("Create", graphRequest{ID: "p"})
	_, err := d.apply("p", "", bytes.NewReader(deviceArchive(t)))
	mustFail(t, err, "device")
	d.call("Create", graphRequest{ID: "p"})
	d.put("p")
	d.get("p")
	_, err = d.apply("p", "", bytes.NewReader(deviceArchive(t)))
	mustFail(t, err, "device")
	d.put("p")
}

// TestStatus: what docker info shows, with names that it and others know.
func TestStatus(t *testing.T) {
	d := newDocker(t, pool.Spec{})
	d.layer("base", "", map[string]string{"a": "1"})
	d.init("dm.mountopt=noatime", "dm.mountopt=nodiratime")
	have := map[string]string{}
	for _, pair := range d.call("Status", graphRequest{}).Status {
		have[pair[0]] = pair[1]
	}
	for key, want := range map[string]string{
		"Pool Name": pooltest.PoolName, "Backing Filesystem": "ext4", "Data Space Total": "2GiB", "Pool Blocksize": "64KiB", "Base Device Size": "1GiB",
		"Layers": "1", "Mount Options": "noatime,nodiratime", "Data loop file": d.e.Data(),
	} {
		if have[key] != want {
			t.Errorf("%s is %q, want %q", key, have[key], want)
		}
	}
	for _, key := range []string{"Data Space Used", "Data Space Available", "Metadata Space Used", "Metadata Space Total", "Metadata Space Available", "WARNING", "Pool UUID"} {
		if have[key] == "" {
			t.Errorf("no %s: %v", key, have)
		}
	}
	// The mount options are used.
	dir := d.get("base")
	mounts, err := os.ReadFile("/proc/self/mounts")
	must(t, err)
	if i := strings.Index(string(mounts), dir); i < 0 || !strings.Contains(strings.SplitN(string(mounts)[i:], "\n", 2)[0], "noatime") {
		t.Errorf("not mounted with noatime:\n%s", mounts)
	}
	d.put("base")
}

// TestGraphtest runs moby's own test cases through moby's own proxy. DMLAYER_GRAPHTEST_LONG=1 adds its benchmarks, and as many layers on xfs as on ext4.
func TestGraphtest(t *testing.T) {
	testenv.Need(t, testenv.Graphtest)
	cache, err := testenv.CacheDir()
	must(t, err)
	long := os.Getenv("DMLAYER_GRAPHTEST_LONG") != ""
	all := []string{"-test.run", "Test([^S]|Setup)"}
	if long {
		all = append(all, "-test.bench", ".", "-test.benchtime", "1x")
	}
	for _, c := range []struct {
		name  string
		spec  pool.Spec
		depth string
		run   []string
	}{
		{"ext4", pool.Spec{}, "128", all},
		{"xfs", pool.Spec{FS: "xfs"}, "16", all},
		{"quota", pool.Spec{BaseSize: 32 << 20}, "", []string{"-test.run", "TestSetQuota"}}, // 50 MB, which xfs cannot be
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDocker(t, c.spec)
			cmd := exec.CommandContext(pooltest.Context(t), filepath.Join(cache, "bin/graphtest"), append(c.run, "-test.v")...)
			cmd.Env = append(os.Environ(), "DMLAYER_GRAPH_SOCKET="+d.Socket)
			if !long {
				cmd.Env = append(cmd.Env, "DMLAYER_GRAPH_DEPTH="+c.depth)
			}
			out, err := cmd.CombinedOutput()
			if err != nil || bytes.Contains(out, []byte("--- SKIP")) || !bytes.Contains(out, []byte("--- PASS")) {
				t.Errorf("%v\n%s", err, out)
			}
			t.Logf("%s", out)
		})
	}
}
