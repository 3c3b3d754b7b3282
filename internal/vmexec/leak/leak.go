// Package leak lists what a test can leave behind in a kernel: device-mapper devices, loop devices,
// mounts, open file descriptors.
//
// It asks the kernel itself and not package devmapper: what looks for the mistakes of a package must
// not rely on it.
package leak

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Set holds one line for everything found, for example "loop device loop0 (/mnt/disk)".
type Set map[string]int

// Kernel lists devices and mounts. Where something cannot be looked at (no root, no device-mapper)
// the list does not hold it.
func Kernel() Set {
	s := Set{}
	s.add("dm device ", dmDevices())
	s.add("loop device ", loopDevices())
	s.add("mount ", mounts())
	return s
}

// Process lists the open file descriptors of this process, but not those that the Go runtime opens
// for itself and keeps.
func Process() Set {
	s := Set{}
	s.add("open file ", openFiles())
	return s
}

func (s Set) add(prefix string, names []string) {
	for _, n := range names {
		s[prefix+n]++
	}
}

// Since returns what s holds and before does not, sorted.
func (s Set) Since(before Set) []string {
	var out []string
	for what, n := range s {
		switch more := n - before[what]; {
		case more == 1:
			out = append(out, what)
		case more > 1:
			out = append(out, fmt.Sprintf("%s (%d times)", what, more))
		}
	}
	slices.Sort(out)
	return out
}

func loopDevices() []string {
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	var out []string
	for _, f := range files {
		if backing, err := os.ReadFile(f); err == nil {
			out = append(out, fmt.Sprintf("%s (%s)", strings.Split(f, "/")[3], bytes.TrimSpace(backing)))
		}
	}
	return out
}

func mounts() []string {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if i := slices.Index(f, "-"); i > 4 && i+2 < len(f) {
			out = append(out, fmt.Sprintf("%s (%s, %s)", f[4], f[i+1], f[i+2]))
		}
	}
	return out
}

func openFiles() []string {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	var out []string
	for _, n := range names {
		to, err := os.Readlink("/proc/self/fd/" + n)
		if err != nil || n == fmt.Sprint(dir.Fd()) || ofTheRuntime(to) {
			continue
		}
		// Sockets, pipes and the like are told apart by number; files by path.
		out = append(out, to)
	}
	return out
}

// ofTheRuntime says whether the Go runtime opens this once and never closes it: the poller and
// the limits of the cgroup.
func ofTheRuntime(path string) bool {
	return path == "anon_inode:[eventpoll]" || path == "anon_inode:[eventfd]" ||
		strings.HasPrefix(path, "/sys/fs/cgroup/")
}

// dmDevices asks DM_LIST_DEVICES (include/uapi/linux/dm-ioctl.h). sysfs would not do: since Linux
// 5.15 a device without a table has no disk there.
func dmDevices() []string {
	const (
		listDevices = 0xc138fd02 // _IOWR(DM_IOCTL, 2, struct dm_ioctl)
		headerSize  = 312        // sizeof(struct dm_ioctl), where the data may start
		bufferFull  = 1 << 8     // DM_BUFFER_FULL_FLAG
	)
	control, err := os.OpenFile("/dev/mapper/control", os.O_RDWR, 0)
	if err != nil {
		return nil
	}
	defer control.Close()
	for size := 16 << 10; size <= 16<<20; size *= 4 {
		buf := make([]byte, size)
		le := binary.NativeEndian
		le.PutUint32(buf[0:], 4) // version 4.0.0, which every kernel of today takes
		le.PutUint32(buf[12:], uint32(size))
		le.PutUint32(buf[16:], headerSize)
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, control.Fd(), listDevices, uintptr(unsafe.Pointer(&buf[0])))
		if errno != 0 {
			return nil
		}
		if le.Uint32(buf[28:])&bufferFull != 0 {
			continue
		}
		return parseDeviceList(buf[le.Uint32(buf[16:]):min(uint32(size), le.Uint32(buf[12:]))])
	}
	return nil
}

// parseDeviceList reads struct dm_name_list: device number (8 bytes), offset of the next entry
// from this one (4 bytes, 0 in the last), name with a final zero byte.
func parseDeviceList(b []byte) []string {
	var out []string
	for len(b) > 12 {
		if binary.NativeEndian.Uint64(b) == 0 {
			break // an empty list is one entry with device number 0
		}
		next := binary.NativeEndian.Uint32(b[8:])
		name, _, _ := bytes.Cut(b[12:], []byte{0})
		out = append(out, string(name))
		if next == 0 || uint64(next) > uint64(len(b)) {
			break
		}
		b = b[next:]
	}
	return out
}
