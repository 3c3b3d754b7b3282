package vmexec_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/internal/vmexec"
)

// roleVariable makes the test binary the runner. Reaper and guest are copies of it.
const roleVariable = "VMEXEC_TEST_ROLE"

func TestMain(m *testing.M) {
	if os.Getenv(roleVariable) != "" || os.Getpid() == 1 || os.Args[0] == "vmexec-reaper" {
		os.Exit(vmexec.Main(os.Args))
	}
	testenv.Main(m)
}

// runner returns a command that runs args in a virtual machine.
func runner(t *testing.T, env []string, args ...string) *exec.Cmd {
	t.Helper()
	testenv.Need(t, testenv.VM)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(runnerEnv(t), env...)
	return cmd
}

func runnerEnv(t *testing.T) []string {
	t.Helper()
	cache, err := testenv.CacheDir()
	if err != nil {
		t.Fatal(err)
	}
	return append(os.Environ(), roleVariable+"=runner", "DMLAYER_CACHE="+cache, "DMLAYER_VM=uml", "CGO_ENABLED=0")
}

// outcome runs cmd and returns what it wrote and its exit code.
func outcome(t *testing.T, cmd *exec.Cmd) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func TestCommands(t *testing.T) {
	for _, c := range []struct {
		name           string
		env            []string
		args           []string
		stdin          string
		stdout, stderr string
		code           int
	}{
		{name: "output and exit code", args: []string{"sh", "-c", `printf 'a\r\n\tb'; printf 'c\n' >&2; exit 7`}, stdout: "a\r\n\tb", stderr: "c\n", code: 7},
		{name: "signal", args: []string{"sh", "-c", "kill -TERM $$"}, code: 128 + 15},
		{name: "standard input", args: []string{"sh", "-c", "cat; echo end"}, stdin: "line\x04\x03\x00\xff\n", stdout: "line\x04\x03\x00\xff\nend\n"},
		{name: "standard input not wanted", args: []string{"head", "-c", "3"}, stdin: strings.Repeat("x", 20000), stdout: "xxx"},
		{name: "root of a fresh kernel", args: []string{"sh", "-c", "id -u; hostname; touch /usr/x 2>/dev/null || echo read-only"}, stdout: "0\nvm\nread-only\n"},
		{name: "environment", env: []string{"DMLAYER_A=b c", "GOX=y", "SECRET=1"}, args: []string{"sh", "-c", `echo "$DMLAYER_A $GOX $SECRET"`}, stdout: "b c y \n"},
		{name: "no such program", args: []string{"no-such-program"}, stderr: "vmexec: find no-such-program in PATH: executable file not found in $PATH\n", code: 127},
		{name: "own PATH", args: []string{"sh", "-c", "for p in thin_check mkfs.xfs mkfs.ext4 dmsetup modprobe; do command -v $p | grep -c /.cache/tools/; done"}, stdout: strings.Repeat("1\n", 5)},
		{name: "disks", env: []string{"DMLAYER_VM_DISKS=64M,1G"}, args: []string{"sh", "-c", "cat /sys/block/ubda/size /sys/block/ubdb/size; dd if=/dev/zero of=/dev/ubda bs=1M count=1 oflag=direct status=none"}, stdout: "131072\n2097152\n"},
		{name: "process left behind", args: []string{"sh", "-c", "sleep 1000 & echo done"}, stdout: "done\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := runner(t, c.env, c.args...)
			if c.stdin != "" {
				cmd.Stdin = strings.NewReader(c.stdin)
			}
			stdout, stderr, code := outcome(t, cmd)
			if stdout != c.stdout || stderr != c.stderr || code != c.code {
				t.Errorf("got %q, %q, code %d; want %q, %q, code %d", stdout, stderr, code, c.stdout, c.stderr, c.code)
			}
		})
	}
}

func TestQEMU(t *testing.T) {
	testenv.Need(t, testenv.QEMU)
	writable := t.TempDir()
	env := []string{"DMLAYER_VM=qemu", "DMLAYER_VM_DISKS=64M", "DMLAYER_VM_RW=" + writable}
	cmd := runner(t, env, "sh", "-c", "nproc; cat; cat /sys/block/vda/size; echo out >"+writable+"/file; touch /usr/x 2>/dev/null || echo read-only; echo err >&2; exit 3")
	cmd.Stdin = strings.NewReader("in\x04\n")
	stdout, stderr, code := outcome(t, cmd)
	if want := "2\nin\x04\n131072\nread-only\n"; stdout != want || stderr != "err\n" || code != 3 {
		t.Errorf("got %q, %q, code %d; want %q", stdout, stderr, code, want)
	}
	if data, err := os.ReadFile(filepath.Join(writable, "file")); string(data) != "out\n" {
		t.Errorf("the writable folder has %q, %v", data, err)
	}
	_, stderr, code = outcome(t, runner(t, env, "sh", "-c", "echo c >/proc/sysrq-trigger"))
	if code != vmexec.ExitHarness || !strings.Contains(stderr, "Kernel panic - not syncing: sysrq triggered crash") {
		t.Errorf("guest panic: exit code %d, %q", code, stderr)
	}
	removeLog(t, stderr)
	if _, stderr, code = outcome(t, runner(t, env, "mount", "-t", "tmpfs", "none", "/opt")); code != vmexec.ExitLeak {
		t.Errorf("leak: exit code %d, %q", code, stderr)
	}
}

func TestWritableFolder(t *testing.T) {
	dir := t.TempDir()
	_, stderr, code := outcome(t, runner(t, []string{"DMLAYER_VM_RW=" + dir}, "sh", "-c", "echo out >"+dir+"/file"))
	data, err := os.ReadFile(filepath.Join(dir, "file"))
	if code != 0 || string(data) != "out\n" {
		t.Errorf("exit code %d, %s; the file has %q, %v", code, stderr, data, err)
	}
}

// TestShell needs a terminal, and script(1) makes one.
func TestShell(t *testing.T) {
	sh := runner(t, nil)
	cmd := exec.Command("script", "-qec", sh.Path, "/dev/null")
	cmd.Env = append(sh.Env, "DMLAYER_VM_TIMEOUT=2m")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	screen := bufio.NewReader(stdout)
	for _, step := range []struct{ wait, send string }{
		{"# ", "tty; test -t 0 -a -t 2 && echo is''terminal\n"},
		{"/dev/tty1\r\n", ""},
		{"isterminal\r\n", ""},
		// ^C ends the sleep and not the machine: the line discipline is the guest's. One process says that it
		// is there and then sleeps, so that the ^C cannot come between two.
		{"# ", "sh -c \"echo go''ing; exec sleep 1000\"\n"},
		{"going\r\n", "\x03"},
		{"# ", "exit 5\n"},
	} {
		if seen, ok := readUntil(screen, step.wait); !ok {
			t.Fatalf("no %q in %q", step.wait, seen)
		}
		if _, err := io.WriteString(in, step.send); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := io.Copy(io.Discard, screen); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("%v, want exit code 5", err)
	}
}

func readUntil(r *bufio.Reader, end string) (seen string, ok bool) {
	for !strings.HasSuffix(seen, end) {
		c, err := r.ReadByte()
		if err != nil {
			return seen, false
		}
		seen += string(c)
	}
	return seen, true
}

func TestLongOutputToASlowReader(t *testing.T) {
	const size = 4 << 20
	cmd := runner(t, nil, "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom | tee /dev/stderr", size))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	n, err := io.CopyBuffer(sum, io.LimitReader(bufio.NewReaderSize(stdout, 16), 1<<30), make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(stderr.Bytes()); n != size || !bytes.Equal(sum.Sum(nil), want[:]) {
		t.Errorf("standard output has %d bytes and is not what standard error has (%d bytes)", n, stderr.Len())
	}
}

func TestLongInput(t *testing.T) {
	data := make([]byte, 200_000)
	rng := rand.NewChaCha8([32]byte{1})
	_, _ = rng.Read(data)
	cmd := runner(t, nil, "sha256sum")
	cmd.Stdin = bytes.NewReader(data)
	stdout, stderr, code := outcome(t, cmd)
	if want := fmt.Sprintf("%x  -\n", sha256.Sum256(data)); stdout != want || code != 0 {
		t.Errorf("got %q, %q, code %d; want %q", stdout, stderr, code, want)
	}
}

func TestGoTest(t *testing.T) {
	testenv.Need(t, testenv.VM)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	profile := filepath.Join(t.TempDir(), "cover")
	for _, c := range []struct {
		name  string
		flags []string
		want  []string
		code  int
	}{
		{"pass", []string{"-v", "-run=Pass", "-coverprofile=" + profile, "-coverpkg=github.com/dmlayer/dmlayer/internal/errs"}, []string{"--- PASS: TestPass", "kernel: 1 uml\n", "ok  \t"}, 0},
		{"fail", []string{"-run=Fail"}, []string{"--- FAIL: TestFail", "guest_test.go:", "failed on purpose", "FAIL\t"}, 1},
		{"panic", []string{"-run=Panic"}, []string{"panic: on purpose", "goroutine ", "FAIL\t"}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			cmd := exec.Command("go", slices.Concat([]string{"test", "-exec", self}, c.flags, []string{"./testdata/guest"})...)
			cmd.Env = runnerEnv(t)
			stdout, stderr, code := outcome(t, cmd)
			for _, want := range c.want {
				if !strings.Contains(stdout, want) {
					t.Errorf("no %q in\n%s%s", want, stdout, stderr)
				}
			}
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
		})
	}
	if data, err := os.ReadFile(profile); err != nil || !bytes.HasPrefix(data, []byte("mode:")) {
		t.Errorf("coverage profile: %q, %v", data, err)
	}
}

func TestLeakIsAFailure(t *testing.T) {
	const leave = "truncate -s 4M $TMPDIR/f && losetup -f $TMPDIR/f && mount -t tmpfs none /opt && " +
		"dmsetup create --notable left && exit "
	for code, want := range map[string]int{"0": vmexec.ExitLeak, "3": 3} {
		_, stderr, got := outcome(t, runner(t, nil, "sh", "-c", leave+code))
		if got != want {
			t.Errorf("exit code %d, want %d", got, want)
		}
		for _, what := range []string{"loop device loop0 (/mnt/f)", "mount /opt (tmpfs, none)", "dm device left"} {
			if !strings.Contains(stderr, what) {
				t.Errorf("no %q in %q", what, stderr)
			}
		}
	}
}

func TestGuestKernelPanic(t *testing.T) {
	watch := watchHost(t)
	_, stderr, code := outcome(t, runner(t, nil, "sh", "-c", "echo c >/proc/sysrq-trigger"))
	if code != vmexec.ExitHarness || !strings.Contains(stderr, "Kernel panic - not syncing: sysrq triggered crash") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	removeLog(t, stderr)
	watch.nothingLeft(t)
}

func TestTimeout(t *testing.T) {
	watch := watchHost(t)
	_, stderr, code := outcome(t, runner(t, []string{"DMLAYER_VM_TIMEOUT=4s"}, "sleep", "1000"))
	if code != vmexec.ExitTimeout || !strings.Contains(stderr, "no end after 4s") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	removeLog(t, stderr)
	watch.nothingLeft(t)
}

// removeLog removes the console log that the message names, which must be there.
func removeLog(t *testing.T, message string) {
	t.Helper()
	_, path, found := strings.Cut(message, "console log: ")
	path, _, _ = strings.Cut(path, "\n")
	if !found {
		t.Fatalf("no console log in %q", message)
	}
	if err := os.Remove(path); err != nil {
		t.Error(err)
	}
}

func TestKilledRunner(t *testing.T) {
	for _, c := range []struct {
		name   string
		signal syscall.Signal
		env    []string
		code   int
	}{
		{"kill -9", syscall.SIGKILL, nil, -1},
		{"terminate", syscall.SIGTERM, nil, 128 + 15},
		{"interrupt", syscall.SIGINT, nil, 128 + 2},
		{"hangup", syscall.SIGHUP, nil, 128 + 1},
		{"kill -9 without a pid namespace", syscall.SIGKILL, []string{"DMLAYER_VM_NAMESPACE=no"}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			watch := watchHost(t)
			cmd := runner(t, append(c.env, "DMLAYER_VM_DISKS=64M"), "sh", "-c", "echo ready; sleep 1000 & sleep 1000")
			started(t, cmd)
			tree := descendants(cmd.Process.Pid)
			if len(tree) < 3 {
				t.Fatalf("want reaper and machine below the runner, got %v", tree)
			}
			if err := cmd.Process.Signal(c.signal); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d", got, c.code)
			}
			eventually(t, "all processes end", func() bool { return !slices.ContainsFunc(tree, alive) })
			watch.nothingLeft(t)
		})
	}
}

// TestKilledReaper kills both who could tidy up: the kernel ends the machine, and the next run
// removes the folder.
func TestKilledReaper(t *testing.T) {
	watch := watchHost(t)
	cmd := runner(t, nil, "sh", "-c", "echo ready; sleep 1000")
	started(t, cmd)
	tree := descendants(cmd.Process.Pid)
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// The first child is the reaper. It may already have seen the end of the runner.
	if err := syscall.Kill(tree[0], syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	eventually(t, "all processes end", func() bool { return !slices.ContainsFunc(tree, alive) })
	if _, stderr, code := outcome(t, runner(t, nil, "true")); code != 0 {
		t.Fatalf("the next run: exit code %d, %s", code, stderr)
	}
	watch.nothingLeft(t)
}

func TestUnprivileged(t *testing.T) {
	testenv.Need(t, testenv.VM)
	if os.Geteuid() != 0 {
		t.Skip("needs root to become another user; without root every other test is this one")
	}
	watch := watchHost(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The test binary lies in a folder of root.
	dir, err := os.MkdirTemp("/tmp", "vmexec-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, "vmexec")
	data, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(copied, data, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(copied, "sh", "-c", "id -u; modprobe dm-thin-pool && dmsetup --noudevsync targets | grep -c thin-pool; exit 3")
	cmd.Env, cmd.Dir = runnerEnv(t), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: false}}
	stdout, stderr, code := outcome(t, cmd)
	if stdout != "0\n1\n" || code != 3 {
		t.Errorf("got %q, %q, code %d", stdout, stderr, code)
	}
	watch.nothingLeft(t)
}

func TestRefusals(t *testing.T) {
	dynamic := filepath.Join(t.TempDir(), "x.test")
	data, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dynamic, data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env  []string
		args []string
		want string
	}{
		{nil, []string{dynamic}, "is dynamically linked; build it with CGO_ENABLED=0"},
		{[]string{"DMLAYER_VM=vax"}, []string{"true"}, "want uml, qemu or none"},
		{[]string{"DMLAYER_VM_TIMEOUT=soon"}, []string{"true"}, "DMLAYER_VM_TIMEOUT"},
		{[]string{"DMLAYER_VM_MEM=much"}, []string{"true"}, "DMLAYER_VM_MEM"},
		{[]string{"DMLAYER_VM_DISKS=1G,x"}, []string{"true"}, "DMLAYER_VM_DISKS"},
		{nil, []string{"/dev/shm/x"}, "is hidden in the virtual machine"},
	} {
		_, stderr, code := outcome(t, runner(t, c.env, c.args...))
		if code != vmexec.ExitHarness || !strings.Contains(stderr, c.want) {
			t.Errorf("%v %v: exit code %d, %q; want %q", c.env, c.args, code, stderr, c.want)
		}
	}
}

// started starts cmd and waits until the job says "ready".
func started(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("the job said %q, %v", line, err)
	}
}

// host is what a run must not change on the host.
type host struct{ folders, memory []string }

func watchHost(t *testing.T) host {
	t.Helper()
	testenv.Need(t, testenv.VM)
	return host{ownFiles("/tmp/dmlayer-vm-run-*"), ownFiles("/dev/shm/*")}
}

func (h host) nothingLeft(t *testing.T) {
	t.Helper()
	// Other runs of this machine come and go: only what stays is left behind.
	eventually(t, "no folder of a run is left", func() bool { return len(unused(ownFiles("/tmp/dmlayer-vm-run-*"))) == 0 })
	if now := ownFiles("/dev/shm/*"); len(now) > len(h.memory) {
		t.Errorf("left in /dev/shm: %v", now)
	}
}

func ownFiles(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

// unused returns the folders that no run has locked.
func unused(dirs []string) []string {
	return slices.DeleteFunc(dirs, func(dir string) bool {
		f, err := os.Open(dir)
		if err != nil {
			return true
		}
		defer f.Close()
		return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	end := time.NewTimer(testenv.Scale(30 * time.Second))
	defer end.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-end.C:
			t.Errorf("did not come true: %s", what)
			return
		}
	}
}

// descendants lists the processes below pid, children first.
func descendants(pid int) []int {
	parents := map[int][]int{}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		p, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if ppid, _, ok := procStat(p); ok {
			parents[ppid] = append(parents[ppid], p)
		}
	}
	var out []int
	for queue := parents[pid]; len(queue) > 0; queue = queue[1:] {
		out = append(out, queue[0])
		queue = append(queue, parents[queue[0]]...)
	}
	return out
}

func alive(pid int) bool {
	_, state, ok := procStat(pid)
	return ok && state != "Z"
}

func procStat(pid int) (ppid int, state string, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, "", false
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	ppid, err = strconv.Atoi(f[1])
	return ppid, f[0], err == nil
}
