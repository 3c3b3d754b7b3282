package testenv

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Feature is something that a test needs and not every machine has. Its text is its name in
// DMLAYER_TEST_REQUIRE.
type Feature string

// The features.
const (
	Root       Feature = "root"       // effective user id 0, on a machine that tests may change
	DM         Feature = "dm"         // device-mapper with the thin-pool target, and root
	Loop       Feature = "loop"       // loop devices, and root
	Ext4       Feature = "ext4"       // ext4 in the kernel, mkfs.ext4
	XFS        Feature = "xfs"        // XFS in the kernel, mkfs.xfs
	Flakey     Feature = "flakey"     // the flakey target
	LogWrites  Feature = "log_writes" // the log-writes target
	Delay      Feature = "delay"      // the delay target
	ThinCheck  Feature = "thin_check" // thin_check, thin_dump and their like
	Systemd    Feature = "systemd"    // systemd-analyze, of the machine or of scripts/deps systemd
	Dmsetup    Feature = "dmsetup"    // the program dmsetup
	LVM        Feature = "lvm"        // the program lvm
	Images     Feature = "images"     // scripts/images has run, and scripts/umoci-unpack -p as in scripts/test
	Graphtest  Feature = "graphtest"  // moby's test cases of graph drivers: scripts/graphtest has run
	Docker     Feature = "docker"     // dockerd and what it needs: scripts/deps docker has run
	Containerd Feature = "containerd" // containerd 1.6 and 2.x with runc: scripts/deps containerd has run
	Clients    Feature = "clients"    // containerd 1.7 and dockerd 29: scripts/deps clients has run
	TCG        Feature = "tcg"        // QEMU with a kernel, in a virtual machine or not: scripts/deps qemu has run
	Guest      Feature = "guest"      // a virtual machine of this run: a test may do its worst
	Host       Feature = "host"       // not a virtual machine of this run
	VM         Feature = "vm"         // a virtual machine can be started: scripts/deps has run, this is none
	QEMU       Feature = "qemu"       // the same for QEMU: scripts/deps qemu has run
)

// probes say why a feature is missing, or nil.
var probes = map[Feature]func() error{
	Root:       needRoot,
	DM:         all(needRoot, needTarget("thin-pool", "dm_thin_pool")),
	Loop:       all(needRoot, needFile("/dev/loop-control")),
	Ext4:       all(needFileSystem("ext4"), needProgram("mkfs.ext4")),
	XFS:        all(needFileSystem("xfs"), needProgram("mkfs.xfs")),
	Flakey:     all(needRoot, needTarget("flakey", "dm_flakey")),
	LogWrites:  all(needRoot, needTarget("log-writes", "dm_log_writes")),
	Delay:      all(needRoot, needTarget("delay", "dm_delay")),
	ThinCheck:  all(needTool("thin_check"), needTool("thin_dump")),
	Systemd:    needSystemd,
	Dmsetup:    needProgram("dmsetup"),
	LVM:        needProgram("lvm"),
	Images:     needImages,
	Graphtest:  needCached("bin/graphtest", "scripts/graphtest"),
	Docker:     needCached("tools/usr/sbin/dockerd", "scripts/deps docker"),
	Containerd: needCached("gotools/containerd-v2.4.2/containerd-shim-runc-v2", "scripts/deps containerd"),
	Clients:    all(needCached("gotools/containerd-v1.7.35/ctr", "scripts/deps clients"), needCached("gotools/docker29-v2.0.0-beta.24/docker", "scripts/deps clients")),
	TCG:        all(needCached("qemu/boot", "scripts/deps qemu"), needCached("tools/usr/bin/qemu-system-x86_64", "scripts/deps qemu")),
	Guest:      needGuest,
	Host:       needHost,
	VM:         needVM,
	QEMU:       needQEMU,
}

var (
	probedMu sync.Mutex
	probed   = map[Feature]error{}
)

// Need skips the test where one of the features is missing. Where DMLAYER_TEST_REQUIRE, a list
// with commas, names the missing one, the test fails.
func Need(t testing.TB, features ...Feature) {
	t.Helper()
	for _, f := range features {
		if probes[f] == nil {
			t.Fatalf("testenv knows no feature %q", string(f)) // a slip of the pen must not look like a skip
		}
		if err := missing(f); err != nil {
			if required(os.Getenv("DMLAYER_TEST_REQUIRE"), f) {
				t.Fatalf("required feature %s is missing: %v", f, err)
			}
			t.Skipf("needs %s: %v", f, err)
		}
	}
}

func required(list string, f Feature) bool {
	return slices.ContainsFunc(strings.Split(list, ","), func(s string) bool { return strings.TrimSpace(s) == string(f) })
}

func missing(f Feature) error {
	probedMu.Lock()
	defer probedMu.Unlock()
	if err, ok := probed[f]; ok {
		return err
	}
	err := probes[f]()
	probed[f] = err
	return err
}

func all(probes ...func() error) func() error {
	return func() error {
		for _, p := range probes {
			if err := p(); err != nil {
				return err
			}
		}
		return nil
	}
}

// needRoot protects the machine of whoever runs go test as root: tests mount, and take loop devices,
// only in a virtual machine, or where DMLAYER_VM=none says that this machine is meant.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("not root")
	}
	if os.Getenv("DMLAYER_VM_GUEST") == "" && os.Getenv("DMLAYER_VM") != "none" {
		return errors.New("not in a virtual machine, and DMLAYER_VM=none does not say that tests may change this one")
	}
	return nil
}

func needFile(path string) func() error {
	return func() error {
		_, err := os.Stat(path)
		return err
	}
}

func needProgram(name string) func() error {
	return func() error {
		_, err := exec.LookPath(name)
		return err
	}
}

// needTarget looks for the target's module: loaded and built-in ones are both in /sys/module.
// What loads modules is the set-up of the machine, not a test.
func needTarget(target, module string) func() error {
	return func() error {
		if _, err := os.Stat("/dev/mapper/control"); err != nil {
			return err
		}
		if _, err := os.Stat("/sys/module/" + module); err != nil {
			return fmt.Errorf("no target %s: %w", target, err)
		}
		return nil
	}
}

func needFileSystem(name string) func() error {
	return func() error {
		data, err := os.ReadFile("/proc/filesystems")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(data)) {
			if strings.TrimSpace(line) == name {
				return nil
			}
		}
		return fmt.Errorf("the kernel has no file system %s", name)
	}
}

func needGuest() error {
	if os.Getenv("DMLAYER_VM_GUEST") == "" {
		return errors.New("not in a virtual machine")
	}
	return nil
}

func needHost() error {
	if os.Getenv("DMLAYER_VM_GUEST") != "" {
		return errors.New("in a virtual machine")
	}
	return nil
}

func needVM() error {
	if err := needHost(); err != nil {
		return err
	}
	_, err := CacheDir()
	return err
}

func needQEMU() error {
	if err := needVM(); err != nil {
		return err
	}
	dir, err := CacheDir()
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(dir, "qemu/boot")); err != nil {
		return fmt.Errorf("%w; run scripts/deps qemu", err)
	}
	return nil
}

func needSystemd() error {
	if err := needTool("systemd-analyze")(); err != nil {
		return fmt.Errorf("%w; run scripts/deps systemd", err)
	}
	return nil
}

func needImages() error {
	dir, err := CacheDir()
	if err != nil {
		return err
	}
	for _, name := range []string{
		"images/small.stamp", "images/large.stamp", "images/docker.stamp", "images/buildah.stamp",
		"images/large.docker.tar.umoci/index.json", "images/docker.id.tar.umoci/index.json", "tools/usr/bin/umoci",
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("%w; run scripts/images and scripts/umoci-unpack -p", err)
		}
	}
	return nil
}

// needCached wants a file in .cache that a script puts there.
func needCached(file, script string) func() error {
	return func() error {
		dir, err := CacheDir()
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Join(dir, file)); err != nil {
			return fmt.Errorf("%w; run %s", err, script)
		}
		return nil
	}
}

// CacheDir returns the folder with the kernel that scripts/deps fetched: .cache in the folder of the
// module, which is above that of every test, or DMLAYER_CACHE.
func CacheDir() (string, error) {
	const kernel = "uml/usr/bin/linux.uml"
	if dir := os.Getenv("DMLAYER_CACHE"); dir != "" {
		_, err := os.Stat(filepath.Join(dir, kernel))
		return dir, err
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			break
		}
		if dir == "/" {
			return "", errors.New("no go.mod above the working folder")
		}
		dir = filepath.Dir(dir)
	}
	dir = filepath.Join(dir, ".cache")
	if _, err := os.Stat(filepath.Join(dir, kernel)); err != nil {
		return "", fmt.Errorf("%w; run scripts/deps", err)
	}
	return dir, nil
}
