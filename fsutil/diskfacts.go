package fsutil

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Disk is what the kernel says of a block device.
type Disk struct {
	DevNum
	Name       string // the kernel's, as in sysfs
	Size       int64  // bytes
	SectorSize int    // of a logical block, bytes
	ReadOnly   bool
}

// DescribeDisk asks the kernel about an open block device.
func DescribeDisk(f *os.File) (d Disk, err error) {
	if d.DevNum, err = DevNumOfFile(f); err != nil {
		return d, err
	}
	if d.Name, err = deviceName(d.DevNum); err != nil {
		return d, err
	}
	size, err := SizeOf(f)
	if err != nil {
		return d, err
	}
	d.Size = int64(size)
	var n int32
	if err := ioctl(int(f.Fd()), unix.BLKSSZGET, &n); err != nil {
		return d, fail("sector size of", f.Name(), err)
	}
	d.SectorSize = int(n)
	if err := ioctl(int(f.Fd()), unix.BLKROGET, &n); err != nil {
		return d, fail("look whether one may write to", f.Name(), err)
	}
	d.ReadOnly = n != 0
	return d, nil
}

// DevicePath returns where devtmpfs has a block device.
func DevicePath(n DevNum) (string, error) { return devicePath(n) }

// Partitions returns the kernel's names of the partitions that it knows of a block device.
func Partitions(n DevNum) ([]string, error) {
	dir := "/sys/dev/block/" + n.String() + "/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fail("look for partitions of", n.String(), errors.Unwrap(err))
	}
	var names []string
	for _, e := range entries {
		if _, err := os.Stat(dir + e.Name() + "/partition"); err == nil {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// SameBlocks tells whether two block devices have blocks in common as far as the kernel's names tell: they are the same, or one is a
// partition of the other. What lies on a device through device-mapper or md is among its Users.
func SameBlocks(a, b DevNum) (bool, error) {
	if a == b {
		return true, nil
	}
	whole := [2]DevNum{}
	for i, n := range []DevNum{a, b} {
		dir, err := filepath.EvalSymlinks("/sys/dev/block/" + n.String())
		if err != nil {
			return false, fail("find block device", n.String(), errors.Unwrap(err))
		}
		whole[i] = n
		if _, err := os.Stat(dir + "/partition"); err != nil {
			continue
		}
		text, err := os.ReadFile(filepath.Dir(dir) + "/dev")
		if err != nil {
			return false, fail("find the disk of", n.String(), errors.Unwrap(err))
		}
		if whole[i], err = parseDevNum(strings.TrimSpace(string(text))); err != nil {
			return false, err
		}
	}
	// Two partitions of a disk have none in common.
	return whole[0] == whole[1] && (whole[0] == a || whole[1] == b), nil
}

// Users says how a block device and its partitions are used, as far as sysfs, swaps, loop devices and this mount namespace tell. None
// is no proof: OpenExclusive is.
func Users(n DevNum) ([]string, error) {
	users, err := usersOfOne(n)
	if err != nil {
		return nil, err
	}
	partitions, err := Partitions(n)
	if err != nil {
		return nil, err
	}
	for _, name := range partitions {
		text, err := os.ReadFile("/sys/class/block/" + name + "/dev")
		if err != nil {
			return nil, fail("find partition", name, errors.Unwrap(err))
		}
		num, err := parseDevNum(strings.TrimSpace(string(text)))
		if err != nil {
			return nil, err
		}
		more, err := usersOfOne(num)
		if err != nil {
			return nil, err
		}
		for _, u := range more {
			users = append(users, "partition "+name+" is "+u)
		}
	}
	return users, nil
}

func usersOfOne(n DevNum) ([]string, error) {
	mounts, err := MountsOf(n.Major, n.Minor)
	if err != nil {
		return nil, err
	}
	var users []string
	for _, m := range mounts {
		users = append(users, "mounted on "+m.Dir)
	}
	holders, err := HoldersOf(n)
	if err != nil {
		return nil, err
	}
	for _, h := range holders {
		users = append(users, "held by "+h)
	}
	swap, err := isSwap(n)
	if err != nil {
		return nil, err
	}
	if swap {
		users = append(users, "swap space in use")
	}
	loops, err := Loops()
	if err != nil {
		return nil, err
	}
	for _, l := range loops {
		if on, err := DevNumOf(l.BackingFile); err == nil && on == n {
			users = append(users, "the disk behind "+l.Path)
		}
	}
	return users, nil
}

// HoldersOf returns the kernel's names of the devices that lie on a block device: of device-mapper, md, bcache.
func HoldersOf(n DevNum) ([]string, error) {
	entries, err := os.ReadDir("/sys/dev/block/" + n.String() + "/holders")
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fail("look for holders of", n.String(), errors.Unwrap(err))
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// isSwap looks a device up among the swap spaces in use.
func isSwap(n DevNum) (bool, error) {
	text, err := os.ReadFile("/proc/swaps")
	if errors.Is(err, os.ErrNotExist) { // a kernel without swap
		return false, nil
	}
	if err != nil {
		return false, fail("read", "/proc/swaps", errors.Unwrap(err))
	}
	for _, line := range strings.Split(string(text), "\n")[1:] {
		path, _, _ := strings.Cut(line, " ")
		if on, err := DevNumOf(unescape(path)); path != "" && err == nil && on == n {
			return true, nil
		}
	}
	return false, nil
}

// RereadPartitions has the kernel look at a device's partition table anew. A device that has no partitions is no error.
func RereadPartitions(f *os.File) error {
	_, err := ioctlNumber(int(f.Fd()), unix.BLKRRPART, 0)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOTTY) {
		return nil
	}
	return fail("read the partition table of", f.Name(), err)
}

// DiskNode is a block device as sysfs lists it.
type DiskNode struct {
	DevNum
	Name    string
	Size    int64    // bytes
	Holders []string // the kernel's names of what lies on it
	DMUUID  string   // of a device of device-mapper
	// Mute says why reading might wait for ever: a device of device-mapper that is suspended, a disk that is offline. "" is no
	// reason that is known.
	Mute string
}

// Disks lists the block devices that have a size and can hold something: no CD-ROM, no floppy, no path that belongs to a multipath disk of
// the kernel's. A device that goes away meanwhile is not listed.
func Disks() ([]DiskNode, error) {
	const dir = "/sys/class/block/"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fail("list", dir, errors.Unwrap(err))
	}
	var disks []DiskNode
	for _, e := range entries {
		if d, ok := diskNode(dir+e.Name()+"/", e.Name()); ok {
			disks = append(disks, d)
		}
	}
	return disks, nil
}

// Major numbers of what holds no pool (Documentation/admin-guide/devices.txt).
var removable = []uint32{2, 11}

// mute are the states of disks that answer late or never (drivers/scsi/scsi_sysfs.c, drivers/nvme/host/sysfs.c).
var mute = []string{"blocked", "created-blocked", "offline", "transport-offline", "quiesce", "connecting", "resetting", "dead"}

func diskNode(dir, name string) (d DiskNode, ok bool) {
	d.Name = name
	var err error
	if d.DevNum, err = parseDevNum(attribute(dir + "dev")); err != nil || slices.Contains(removable, d.Major) {
		return d, false
	}
	sectors, err := strconv.ParseInt(attribute(dir+"size"), 10, 64)
	if err != nil || sectors <= 0 || attribute(dir+"hidden") == "1" {
		return d, false
	}
	d.Size = sectors * 512
	d.DMUUID = attribute(dir + "dm/uuid")
	if d.Holders, err = HoldersOf(d.DevNum); err != nil {
		return d, false
	}
	if attribute(dir+"dm/suspended") == "1" {
		d.Mute = "suspended"
	}
	// Of a disk, and of the disk of a partition.
	for _, place := range []string{dir + "device/state", dir + "../device/state"} {
		if state := attribute(place); slices.Contains(mute, state) {
			d.Mute = state
		}
	}
	return d, true
}

// attribute reads what sysfs says, "" for nothing.
func attribute(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// Identity tells a block device from all others that have had its number since the boot: by the number that the kernel gives each disk that it
// sees, from Linux 5.15 on, and of a loop device also by the file behind it. "" is nothing that could tell.
func Identity(n DevNum) string {
	dir := "/sys/dev/block/" + n.String() + "/"
	id := attribute(dir + "diskseq")
	if id == "" { // of a partition
		id = attribute(dir + "../diskseq")
	}
	if l, attached, err := LoopAt(n); err == nil && attached {
		id += fmt.Sprintf(" of file %d on %d", l.Inode, l.Dev)
	}
	return id
}

// String names the device for people.
func (d DiskNode) String() string { return fmt.Sprintf("%s (%s)", d.Name, d.DevNum) }

// SectorSize returns the size of a logical block of a block device in bytes, as sysfs has it: 512 where it does not tell.
func SectorSize(n DevNum) int64 {
	size, err := strconv.ParseInt(attribute("/sys/dev/block/"+n.String()+"/queue/logical_block_size"), 10, 64)
	if err != nil || size < 512 {
		return 512
	}
	return size
}
