package layer_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// lvm2 can die at any instant, between two writes of its own. So that it does, the test binary takes the place of the program: under the
// name lvm it runs the real one, traces it, and kills it when it is about to take one of its steps, which are writes to disks and changes
// of dm devices.
const (
	realLVM   = "DMLAYER_TEST_LVM"       // the path of the real program
	lvmSteps  = "DMLAYER_TEST_LVM_STEPS" // a file with the number of steps that were taken
	lvmKillAt = "DMLAYER_TEST_LVM_KILL"  // at which step, from 1; 0 is never
	lvmBoth   = "DMLAYER_TEST_LVM_BOTH"  // its caller dies with it
)

// tracedLVM is what the test binary does under the name of lvm2's program.
func tracedLVM() int {
	runtime.LockOSThread()
	killAt, _ := strconv.Atoi(os.Getenv(lvmKillAt))
	steps := 0
	if b, err := os.ReadFile(os.Getenv(lvmSteps)); err == nil {
		steps, _ = strconv.Atoi(string(b))
	}
	cmd := exec.Command(os.Getenv(realLVM), os.Args[1:]...)
	cmd.Args[0] = "lvm"
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 3
	}
	pid := cmd.Process.Pid
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		fmt.Fprintln(os.Stderr, "wait:", err)
		return 3
	}
	_ = syscall.PtraceSetOptions(pid, syscall.PTRACE_O_TRACESYSGOOD|unix.PTRACE_O_EXITKILL)
	entry, signal := false, 0
	for {
		if err := syscall.PtraceSyscall(pid, signal); err != nil {
			fmt.Fprintln(os.Stderr, "trace:", err)
			return 3
		}
		if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
			fmt.Fprintln(os.Stderr, "wait:", err)
			return 3
		}
		switch {
		case status.Exited():
			_ = os.WriteFile(os.Getenv(lvmSteps), []byte(strconv.Itoa(steps)), 0o600)
			return status.ExitStatus()
		case status.Signaled():
			return 128 + int(status.Signal())
		case status.StopSignal() != syscall.SIGTRAP|0x80:
			if signal = int(status.StopSignal()); signal == int(syscall.SIGTRAP) { // the kernel's, of exec
				signal = 0
			}
			continue
		}
		if signal, entry = 0, !entry; !entry || !isStep(pid) {
			continue
		}
		if steps++; steps == killAt {
			_ = os.WriteFile(os.Getenv(lvmSteps), []byte(strconv.Itoa(steps)), 0o600)
			_ = unix.Kill(pid, unix.SIGKILL)
			_, _ = syscall.Wait4(pid, &status, 0, nil)
			if os.Getenv(lvmBoth) != "" {
				_ = unix.Kill(os.Getppid(), unix.SIGKILL)
			}
			return 128 + int(unix.SIGKILL)
		}
	}
}

// isStep tells whether the system call that a process is about to make changes something: a write to a disk, or a dm device.
func isStep(pid int) bool {
	register := func(n uintptr) (v uint64) { // as user_regs_struct has it; what asks for all gets zeros from User-Mode Linux
		_, _, _ = unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_PEEKUSR, uintptr(pid), n*8, uintptr(unsafe.Pointer(&v)), 0, 0)
		return v
	}
	const rdx, rsi, origRAX = 12, 13, 15
	peek := func(at uint64) uint64 {
		var b [8]byte
		if n, err := syscall.PtracePeekData(pid, uintptr(at), b[:]); err != nil || n < len(b) {
			return 0
		}
		return binary.LittleEndian.Uint64(b[:])
	}
	switch register(origRAX) {
	case unix.SYS_PWRITE64:
		return true
	case unix.SYS_IO_SUBMIT: // the first of its requests says whether they write
		const write = 1 // IOCB_CMD_PWRITE
		return uint16(peek(peek(register(rdx))+16)) == write
	case unix.SYS_IOCTL:
		const group, create, remove, suspend, load = 0xfd, 3, 4, 6, 9 // of device-mapper
		request := register(rsi)
		n := request & 0xff
		return request>>8&0xff == group && (n == create || n == remove || n == suspend || n == load)
	}
	return false
}

// killer has lvm2's programs killed in children of the test.
type killer struct {
	t     *testing.T
	steps string
}

func newKiller(t *testing.T) killer {
	t.Helper()
	lvm, err := run.Look("lvm")
	must(t, err)
	self, err := os.Executable()
	must(t, err)
	dir := t.TempDir()
	must(t, os.Symlink(self, filepath.Join(dir, "lvm")))
	k := killer{t, filepath.Join(dir, "steps")}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	t.Setenv(realLVM, lvm)
	t.Setenv(lvmSteps, k.steps)
	k.at(0, false)
	return k
}

// at has the children's lvm2 killed at that step, 0 for never.
func (k killer) at(step int, both bool) {
	k.t.Helper()
	k.t.Setenv(lvmKillAt, strconv.Itoa(step))
	k.t.Setenv(lvmBoth, map[bool]string{true: "yes"}[both])
	must(k.t, os.WriteFile(k.steps, []byte("0"), 0o600))
}

// taken returns how many steps were taken.
func (k killer) taken() int {
	k.t.Helper()
	b, err := os.ReadFile(k.steps)
	must(k.t, err)
	n, err := strconv.Atoi(string(b))
	must(k.t, err)
	return n
}

// allSteps are those at which lvm2 is killed, of so many.
func allSteps(n int) (list []int) {
	for i := range n {
		list = append(list, i+1)
	}
	return list
}

// Whatever step of lvm2 is its last, alone or with dmlayer: what was being made, made larger or taken away is made, larger or gone after
// the next command, and nothing else is left.
func TestVolumesProgramKilled(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	if !thorough() {
		t.Skip("takes minutes: DMLAYER_TEST_LONG, as scripts/test-all sets it, has it run")
	}
	disk := pooltest.NewLoop(t, 64<<20)
	k := newKiller(t)
	w := newVolumesWorld(t, disk.Path)
	b := make([]byte, 12<<20)
	rand.New(rand.NewSource(7)).Read(b)
	sum := ""
	fill := func() {
		t.Helper()
		f, err := fsutil.OpenDevice(disk.Path, true)
		must(t, err)
		_, err = f.WriteAt(b, 0)
		must(t, errors.Join(err, f.Sync(), f.Close()))
		now, err := pooltest.Checksum(disk.Path)
		must(t, err)
		sum = fmt.Sprintf("%x", now)
	}
	// end waits for an operation whose lvm2 is killed: it fails, or dies with it, or comes to its end all the same.
	end := func(op string) error {
		t.Helper()
		err, killed := pooltest.Run(t, w.job(op, "")).Wait()
		if killed {
			err = errors.New("killed")
		}
		return err
	}
	length := func(op string) int {
		t.Helper()
		k.at(0, false)
		w.run(op)
		return k.taken()
	}
	lvm := func() string {
		return pooltest.LVM(t, "pvs", "-o", "+pv_uuid") + pooltest.LVM(t, "vgs", "-o", "+tags") + pooltest.LVM(t, "lvs", "-a", "-o", "+tags")
	}
	undone := func(what string) {
		t.Helper()
		if err := nothingLeft(w.Env); err != nil {
			t.Fatalf("%s: %v\n%s", what, err, lvm())
		}
		if now, err := pooltest.Checksum(disk.Path); err != nil || fmt.Sprintf("%x", now) != sum {
			t.Fatalf("%s: the disk is not what it was: %v", what, err)
		}
	}
	fill()
	creates := length("create")
	extends := length("extend")
	destroys := length("destroy")
	t.Logf("steps of lvm2: create %d, extend %d, destroy %d", creates, extends, destroys)
	if creates == 0 || extends == 0 || destroys == 0 {
		t.Fatal("lvm2 takes no steps")
	}
	fill()
	for _, both := range []bool{false, true} {
		for _, n := range allSteps(creates) {
			k.at(n, both)
			err := end("create")
			k.at(0, false)
			if err == nil {
				w.run("destroy")
				fill()
				continue
			}
			w.run("recover")
			undone(fmt.Sprintf("create killed at step %d (%v)", n, both))
		}
	}
	w.run("create")
	sizes := func() (data int64) {
		t.Helper()
		st, err := pool.Inspect(pooltest.Context(t), w.Dirs, w.Name)
		must(t, err)
		return *st.DataTotal
	}
	for _, both := range []bool{false, true} {
		for _, n := range allSteps(extends) {
			k.at(n, both)
			before := sizes()
			_ = end("extend")
			k.at(0, false)
			w.run("start")
			if now := sizes(); now < before {
				t.Fatalf("extend killed at step %d (%v): from %d to %d", n, both, before, now)
			}
			if sizes() > 36<<20 {
				w.run("destroy")
				w.run("create")
			}
		}
	}
	must(t, w.Check(pooltest.Context(t)))
	w.run("destroy")
	for _, both := range []bool{false, true} {
		for _, n := range allSteps(destroys) {
			w.run("create")
			k.at(n, both)
			_ = end("destroy")
			k.at(0, false)
			w.run("recover")
			must(t, nothingLeft(w.Env))
			if out := pooltest.LVM(t, "pvs", "--noheadings", "-o", "pv_name"); strings.Contains(out, disk.Path) {
				t.Fatalf("destroy killed at step %d (%v): left %s", n, both, out)
			}
		}
	}
}
