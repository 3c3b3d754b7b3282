package thinpool_test

import (
	"errors"
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

const (
	metaBytes = 8 << 20
	dataBytes = 64 << 20
)

func newKernelLab(t *testing.T) lab {
	t.Helper()
	testenv.Need(t, testenv.DM, testenv.Loop)
	c, err := devmapper.Open()
	must(t, err)
	t.Cleanup(func() { must(t, c.Close()) })
	return lab{c, loop(t, tempFile(t, "meta", metaBytes)), loop(t, tempFile(t, "data", dataBytes)), nil}
}

// loop makes a loop device for the test.
func loop(t *testing.T, path string) devmapper.DevNum {
	t.Helper()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		must(t, err)
		err = unix.IoctlLoopConfigure(int(dev.Fd()), &unix.LoopConfig{Fd: uint32(file.Fd())})
		if errors.Is(err, unix.EBUSY) { // somebody else was faster
			dev.Close()
			continue
		}
		must(t, err)
		t.Cleanup(func() {
			_, _, errno := unix.Syscall(unix.SYS_IOCTL, dev.Fd(), unix.LOOP_CLR_FD, 0)
			if errno != 0 {
				t.Errorf("detach %s: %v", dev.Name(), errno)
			}
			dev.Close()
		})
		var st unix.Stat_t
		must(t, unix.Fstat(int(dev.Fd()), &st))
		return devmapper.DevNum{Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev)}
	}
}

// dm activates a device that is no pool and no thin device.
func (l lab) dm(t *testing.T, name devmapper.Name, targets ...devmapper.Target) devmapper.Info {
	t.Helper()
	ref := devmapper.ByName(name)
	_, err := l.Create(name, "")
	must(t, err)
	t.Cleanup(func() { l.remove(t, ref) })
	return l.reload(t, ref, targets...)
}

// reload gives a device another table.
func (l lab) reload(t *testing.T, ref devmapper.Ref, targets ...devmapper.Target) devmapper.Info {
	t.Helper()
	must(t, l.Load(ref, devmapper.LoadOptions{}, targets...))
	info, err := l.Resume(ref, devmapper.ResumeOptions{})
	must(t, err)
	return info
}

// open opens a device for direct I/O.
func open(t *testing.T, info devmapper.Info) *os.File {
	t.Helper()
	flags := os.O_RDWR
	if info.ReadOnly {
		flags = os.O_RDONLY
	}
	f, err := os.OpenFile(fmt.Sprintf("/dev/dm-%d", info.Dev.Minor), flags|unix.O_DIRECT, 0)
	must(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// page is memory for direct I/O, filled with c.
func page(t *testing.T, c byte) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, int(blockSize.Bytes()), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	must(t, err)
	t.Cleanup(func() { _ = unix.Munmap(b) })
	for i := range b {
		b[i] = c
	}
	return b
}
