package vmexec

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestConfigFrom(t *testing.T) {
	c, err := configFrom([]string{
		"DMLAYER_VM_TIMEOUT=90s", "DMLAYER_VM_MEM=512M", "DMLAYER_VM_DISKS=1G, 64M", "DMLAYER_VM_MODULES=dm-crypt",
		"DMLAYER_VM_RW=/a:/b", "DMLAYER_CACHE=/c", "PATH=/host",
	}, []string{"true"})
	if err != nil {
		t.Fatal(err)
	}
	if c.kind != kindUML || c.timeout != 90*time.Second || c.memory != 512<<20 || !slices.Equal(c.disks, []int64{1 << 30, 64 << 20}) ||
		!slices.Contains(c.modules, "dm-crypt") || !slices.Contains(c.modules, "loop") || !slices.Equal(c.rw, []string{"/a", "/b"}) {
		t.Errorf("got %+v", c)
	}
	if path := lookupEnv(c.env, "PATH"); !strings.HasPrefix(path, "/c/tools/usr/sbin:/c/tools/usr/bin:") || strings.Contains(path, "/host") {
		t.Errorf("PATH=%s", path)
	}
	if len(defaultModules) != slices.Index(c.modules, "dm-crypt") {
		t.Errorf("the defaults were changed: %v", defaultModules)
	}
}

func TestTimeouts(t *testing.T) {
	for _, c := range []struct {
		asked string
		args  []string
		want  time.Duration
	}{
		{"", nil, 0},
		{"1h", nil, time.Hour},
		{"0", []string{"true"}, 0},
		{"", []string{"true", "-test.timeout=1s"}, 15 * time.Minute},
		{"", []string{"/x.test", "-test.timeout=10m0s"}, 12 * time.Minute},
		{"", []string{"/x.test", "-test.timeout=0"}, 0},
		{"5s", []string{"/x.test", "-test.timeout=10m0s"}, 5 * time.Second},
	} {
		if got, err := timeoutOf(c.asked, c.args); err != nil || got != c.want {
			t.Errorf("%q %v: got %v, %v; want %v", c.asked, c.args, got, err, c.want)
		}
	}
	if _, err := timeoutOf("soon", nil); err == nil {
		t.Error("no error for a timeout that is none")
	}
}

func TestJobEnvironment(t *testing.T) {
	for _, c := range []struct {
		environ    []string
		kind, want string
		missing    string
	}{
		{[]string{"DMLAYER_X=1", "GOGC=50", "TOKEN=2"}, kindUML, "DMLAYER_X=1", "TOKEN="},
		{[]string{"GOGC=50"}, kindUML, "GOGC=50", ""},
		{nil, kindUML, "DMLAYER_VM_GUEST=1", ""},
		{[]string{"DMLAYER_VM_GUEST=1"}, kindNative, "DMLAYER_VM=none", "DMLAYER_VM_GUEST"},
		{nil, kindQEMU, "DMLAYER_TEST_REQUIRE=root,dm,loop,ext4,xfs,thin_check,images,graphtest,docker,flakey,log_writes,delay,dmsetup,lvm,guest", ""},
		{nil, kindNative, "DMLAYER_TEST_REQUIRE=root,dm,loop,ext4,xfs,thin_check,images,graphtest,docker", ""},
		{[]string{"DMLAYER_TEST_REQUIRE=root"}, kindUML, "DMLAYER_TEST_REQUIRE=root", ""},
	} {
		env := jobEnv(c.environ, &config{kind: c.kind, cache: "/c"})
		if !slices.Contains(env, c.want) {
			t.Errorf("%v: no %s in %v", c.environ, c.want, env)
		}
		if c.missing != "" && slices.ContainsFunc(env, func(s string) bool { return strings.HasPrefix(s, c.missing) }) {
			t.Errorf("%v: %s in %v", c.environ, c.missing, env)
		}
	}
}

func TestOutputDirs(t *testing.T) {
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"prog", "-test.coverprofile=/x/y"}, nil},
		{[]string{"a.test", "-test.v"}, nil},
		{[]string{"a.test", "-test.coverprofile=/x/y", "-test.cpuprofile=/x/z"}, []string{"/x"}},
		{[]string{"a.test", "-test.cpuprofile=p", "-test.outputdir=/out"}, []string{"/out"}},
		{[]string{"a.test", "-test.trace=sub/p"}, []string{"/cwd/sub"}},
		{[]string{"a.test", "-test.gocoverdir=/g", "-test.fuzzcachedir=/f"}, []string{"/g", "/f"}},
	} {
		if got := outputDirs(c.args, "/cwd"); !slices.Equal(got, c.want) {
			t.Errorf("%v: got %v, want %v", c.args, got, c.want)
		}
	}
}

func TestPlaces(t *testing.T) {
	if err := checkVisible("/runner/x", "/usr/bin/x", "/devices"); err != nil {
		t.Error(err)
	}
	for _, hidden := range []string{"/run", "/run/x", "/dev/shm/go-build/x.test", "/proc/1"} {
		if err := checkVisible("/usr", hidden); err == nil {
			t.Errorf("%s passed for visible", hidden)
		}
	}
	first, err := chooseWork("/home")
	if err != nil {
		t.Fatal(err)
	}
	second, err := chooseWork("/home", filepath.Join(first, "repository"))
	if err != nil || second == first {
		t.Errorf("got %q, %v, though the job's files are in %s", second, err, first)
	}
}

func TestConsoleExcerpt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	log := "first\r\n" + strings.Repeat("line\n", 20) + "Kernel panic - not syncing\nStack:\n 606944ba 607e7fcd\n\nCall Trace:\n [<606944ba>] ? _printk+0x0/0x94\n"
	if err := os.WriteFile(path, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	got := consoleExcerpt(path)
	if !strings.HasSuffix(got, "\tline\n\tKernel panic - not syncing\n\tStack:") || strings.Contains(got, "first") {
		t.Errorf("got %q", got)
	}
}

func TestModuleOrder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "modules.dep")
	dep := "a/virtio_pci.ko: a/virtio_ring.ko a/virtio.ko\na/virtio_ring.ko: a/virtio.ko\na/virtio.ko:\nfs/9p.ko: net/9pnet.ko fs/netfs.ko\nnet/9pnet.ko:\nfs/netfs.ko:\n"
	if err := os.WriteFile(path, []byte(dep), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := moduleOrder(path, []string{"9p", "virtio-pci", "built-in", "virtio"})
	want := []string{"fs/netfs.ko", "net/9pnet.ko", "fs/9p.ko", "a/virtio.ko", "a/virtio_ring.ko", "a/virtio_pci.ko"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

func TestCpioIsAligned(t *testing.T) {
	var a cpioArchive
	a.add("init", 0o100755, []byte("12345"))
	a.add("x", 0o040755, nil)
	data := string(a.end())
	for i, magic := 0, "070701"; ; {
		at := strings.Index(data[i:], magic)
		if at < 0 {
			break
		}
		if (i+at)%4 != 0 {
			t.Errorf("header at %d is not aligned to 4 bytes", i+at)
		}
		i += at + len(magic)
	}
	if len(data)%4 != 0 || !strings.Contains(data, "TRAILER!!!\x00") || strings.Count(data, "070701") != 3 {
		t.Errorf("archive: %q", data)
	}
}
