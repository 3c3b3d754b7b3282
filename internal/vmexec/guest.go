package vmexec

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/vmexec/leak"
)

// shareVariable reaches the guest on the kernel's command line: the kernel puts words of the form
// name=value that it does not know into the environment of init.
const shareVariable = "vmexec_share"

const guestShare = "/run/vmexec"

// guestMain is PID 1 of the virtual machine. It never returns.
func guestMain(kind string) {
	if err := guestRun(kind); err != nil {
		// The kernel log reaches the console log, which the runner shows when there is no result.
		fmt.Fprintln(os.Stderr, "vmexec guest:", err)
		if kmsg, kerr := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); kerr == nil {
			fmt.Fprintln(kmsg, "vmexec guest:", err)
		}
	}
	powerOff()
}

func guestRun(kind string) error {
	if kind == kindQEMU {
		if err := bootFromInitrd(); err != nil {
			return err
		}
	}
	if err := mountBasics(); err != nil {
		return err
	}
	if err := mountShare(kind); err != nil {
		return err
	}
	var j job
	if err := readJSON(guestShare, jobFile, &j); err != nil {
		return err
	}
	r := result{Code: ExitHarness}
	if err := prepareGuest(kind, &j); err != nil {
		r.Error = err.Error()
	} else {
		runJob(&j, &r)
	}
	return writeJSON(guestShare, resultFile, r)
}

func runJob(j *job, r *result) {
	before := leak.Kernel()
	code, err := runGuestProcess(j)
	if err != nil {
		r.Error = err.Error()
		return
	}
	r.Done, r.Code = true, code
	if j.CheckLeaks {
		r.Leaks = settledLeaks(before)
	}
}

// settledLeaks gives the kernel a moment: a loop device that clears itself and a lazy unmount
// take effect after the call that asked for them.
func settledLeaks(before leak.Set) []string {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var leaks []string
	for range 20 {
		if leaks = leak.Kernel().Since(before); len(leaks) == 0 {
			return nil
		}
		<-tick.C
	}
	return leaks
}

type mountPoint struct {
	source, target, kind string
	flags                uintptr
	options              string
}

func mountBasics() error {
	for _, m := range []mountPoint{
		{"proc", "/proc", "proc", 0, ""},
		{"sysfs", "/sys", "sysfs", 0, ""},
		{"devtmpfs", "/dev", "devtmpfs", 0, ""},
		{"devpts", "/dev/pts", "devpts", 0, "mode=620,ptmxmode=666"},
		{"tmpfs", "/dev/shm", "tmpfs", 0, "mode=1777"},
		{"tmpfs", "/run", "tmpfs", 0, "mode=755"},
	} {
		if strings.HasPrefix(m.target, "/dev/") {
			if err := os.MkdirAll(m.target, 0o755); err != nil {
				return fmt.Errorf("make %s: %w", m.target, err)
			}
		}
		// EBUSY: the kernel was built to mount devtmpfs by itself.
		if err := unix.Mount(m.source, m.target, m.kind, m.flags, m.options); err != nil && !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("mount %s on %s: %w", m.kind, m.target, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, "/dev/"+name); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("link /dev/%s: %w", name, err)
		}
	}
	for _, dir := range []string{"/run/lock", guestShare} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}

// mountHost makes a folder of the host writable in the guest.
func mountHost(dir, target string) error {
	if err := unix.Mount("none", target, "hostfs", 0, dir); err != nil {
		return fmt.Errorf("mount host folder %s on %s: %w", dir, target, err)
	}
	return nil
}

func mountShare(kind string) error {
	if kind == kindQEMU {
		return mount9p(tagShare, guestShare, 0, "")
	}
	return mountHost(os.Getenv(shareVariable), guestShare)
}

func prepareGuest(kind string, j *job) error {
	// A WARNING of device-mapper is a failed test, and a kernel that went wrong must not go on.
	for name, value := range map[string]string{"panic_on_oops": "1", "panic_on_warn": "1", "panic": "-1"} {
		if err := os.WriteFile("/proc/sys/kernel/"+name, []byte(value), 0); err != nil {
			return err
		}
	}
	if err := unix.Mount("tmpfs", j.Work, "tmpfs", 0, "mode=1777,size=90%"); err != nil {
		return fmt.Errorf("mount tmpfs on %s: %w", j.Work, err)
	}
	for i, dir := range j.Writable {
		mount := func() error { return mountHost(dir, dir) }
		if kind == kindQEMU {
			mount = func() error { return mount9p(writableTag(i), dir, 0, "") }
		}
		if err := mount(); err != nil {
			return err
		}
	}
	if j.LibraryCache != "" {
		if err := unix.Mount(j.LibraryCache, "/etc/ld.so.cache", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s: %w", j.LibraryCache, err)
		}
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte("vm")); err != nil {
		return err
	}
	return loadModules(j)
}

// loadModules makes the kernel's modules available, now and for the kernel's own requests.
func loadModules(j *job) error {
	if j.ModuleTree == "" || len(j.Modules) == 0 {
		return nil
	}
	modprobe, err := lookPath("modprobe", j.Env)
	if err != nil {
		return err
	}
	tree := filepath.Join(j.ModuleTree, "lib/modules")
	helper := modprobe
	if err := unix.Mount(tree, "/lib/modules", "", unix.MS_BIND, ""); err != nil {
		// A host without any kernel has no /lib/modules to mount on. The job's modprobe finds the tree in
		// MODPROBE_OPTIONS; the kernel's own has no such environment.
		helper = "/run/modprobe"
		script := fmt.Sprintf("#!/bin/sh\nexec %s -d %s \"$@\"\n", modprobe, j.ModuleTree)
		if err := os.WriteFile(helper, []byte(script), 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte(helper), 0); err != nil {
		return err
	}
	cmd := exec.Command(modprobe, append([]string{"-a"}, j.Modules...)...)
	cmd.Env = j.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("modprobe %s: %w: %s", strings.Join(j.Modules, " "), err, out)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}

// lookPath finds a program in the PATH of env, which is the job's and not this process's.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, dir := range filepath.SplitList(lookupEnv(env, "PATH")) {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s in PATH: %w", name, exec.ErrNotFound)
}

func lookupEnv(env []string, name string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], name+"="); ok {
			return v
		}
	}
	return ""
}

// powerOff ends the virtual machine. It does not sync: a job may have left a suspended device
// behind, on which sync would wait for ever, and no disk of the machine outlives it. What must
// reach the host was written with writeJSON.
func powerOff() {
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	// Without power management the call halts; an init that returns panics the kernel, which ends
	// the machine as well.
	os.Exit(0)
}
