package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
)

// places are the files that tell what the system can do; tests have others.
type places struct {
	loopControl, filesystems, modules, udev string
}

var systemPlaces = places{
	loopControl: "/dev/loop-control",
	filesystems: "/proc/filesystems",
	modules:     "/lib/modules",
	udev:        "/run/udev/control",
}

// The oldest kernel that works: LOOP_CONFIGURE came with 5.8, and the mounts without a path with 5.2.
const minMajor, minMinor = 5, 8

// leastFree is the free space below which doctor warns.
const leastFree = 1 << 30

func checkRoot(euid int) checkRecord {
	if euid != 0 {
		return checkRecord{"root", checkWarn, "not root: device-mapper and pools cannot be looked at", "run doctor as root"}
	}
	return checkRecord{"root", checkOK, "running as root", ""}
}

func kernelRelease() (string, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "", fmt.Errorf("uname: %w", err)
	}
	return unix.ByteSliceToString(u.Release[:]), nil
}

func checkKernel(release string, err error) checkRecord {
	c := checkRecord{Check: "kernel", Status: checkWarn, Detail: release}
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	major, minor, ok := parseRelease(release)
	switch {
	case !ok:
		c.Advice = fmt.Sprintf("its version cannot be read; %d.%d or newer is needed", minMajor, minMinor)
	case major < minMajor, major == minMajor && minor < minMinor:
		c.Status, c.Advice = checkFail, fmt.Sprintf("install Linux %d.%d or newer", minMajor, minMinor)
	default:
		c.Status = checkOK
	}
	return c
}

func parseRelease(release string) (major, minor int, ok bool) {
	words := strings.SplitN(release, ".", 3)
	if len(words) < 2 {
		return 0, 0, false
	}
	digits := strings.IndexFunc(words[1], func(r rune) bool { return r < '0' || r > '9' })
	if digits >= 0 {
		words[1] = words[1][:digits]
	}
	major, err1 := strconv.Atoi(words[0])
	minor, err2 := strconv.Atoi(words[1])
	return major, minor, err1 == nil && err2 == nil
}

const moduleAdvice = "load the module with `modprobe dm_thin_pool`; where there is none, use a kernel built with CONFIG_DM_THIN_PROVISIONING"

// checkDeviceMapper asks the kernel's device-mapper for its version and for the thin-pool target.
func checkDeviceMapper() []checkRecord {
	dm, err := devmapper.Open()
	if errors.Is(err, devmapper.ErrPermission) {
		return []checkRecord{{"device-mapper", checkWarn, err.Error(), "run doctor as root"}}
	}
	if err != nil {
		return []checkRecord{
			{"device-mapper", checkFail, err.Error(), "load the module with `modprobe dm_mod`; in a container, make /dev/mapper/control available"},
			{"thin-pool target", checkFail, "not known without device-mapper", moduleAdvice},
		}
	}
	defer dm.Close()
	checks := []checkRecord{{"device-mapper", checkOK, "", ""}}
	if v, err := dm.Version(); err == nil {
		checks[0].Detail = "interface " + v.String()
	}
	v, err := dm.TargetVersion("thin-pool")
	if err != nil {
		return append(checks, checkRecord{"thin-pool target", checkFail, err.Error(), moduleAdvice})
	}
	return append(checks, checkRecord{"thin-pool target", checkOK, "version " + v.String(), ""})
}

func (at places) checkLoop() checkRecord {
	if _, err := os.Stat(at.loopControl); err != nil {
		return checkRecord{"loop devices", checkFail, err.Error(), "load the module with `modprobe loop`; in a container, make /dev/loop-control available"}
	}
	return checkRecord{"loop devices", checkOK, at.loopControl, ""}
}

// checkFileSystems looks for ext4 and xfs in the kernel or among its modules.
func (at places) checkFileSystems() []checkRecord {
	var loaded []string
	text, err := os.ReadFile(at.filesystems)
	if err == nil {
		loaded = strings.Fields(string(text))
	}
	modules := modulesOf(at.modules)
	var checks []checkRecord
	for _, fs := range []string{"ext4", "xfs"} {
		c := checkRecord{Check: fs, Status: checkOK}
		switch {
		case slices.Contains(loaded, fs):
			c.Detail = "in the kernel"
		case strings.Contains(modules, "/"+fs+".ko"):
			c.Detail = "a module, loaded when it is needed"
		case fs == "ext4":
			c.Status, c.Detail, c.Advice = checkWarn, "not in the kernel", "load the module with `modprobe ext4`, or make pools with --fs xfs"
		default:
			c.Status, c.Detail, c.Advice = checkWarn, "not in the kernel", "only needed for pools made with --fs xfs: `modprobe xfs`"
		}
		checks = append(checks, c)
	}
	return checks
}

// modulesOf returns the running kernel's list of modules; "" where there is none.
func modulesOf(dir string) string {
	release, err := kernelRelease()
	if err != nil {
		return ""
	}
	var text strings.Builder
	for _, name := range []string{"modules.dep", "modules.builtin"} {
		if b, err := os.ReadFile(filepath.Join(dir, release, name)); err == nil {
			text.Write(b)
		}
	}
	return text.String()
}

func (at places) checkUdev() checkRecord {
	if _, err := os.Stat(at.udev); err != nil {
		return checkRecord{"udev", checkOK, "not running; dmlayer does not need it", ""}
	}
	return checkRecord{"udev", checkOK, "running; dmlayer tells it to leave its devices alone", ""}
}

// magics names the file systems that make a difference.
var magics = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
	unix.OVERLAYFS_SUPER_MAGIC: "overlay", unix.NFS_SUPER_MAGIC: "nfs", unix.RAMFS_MAGIC: "ramfs", unix.FUSE_SUPER_MAGIC: "fuse",
}

// existing returns dir, or the nearest directory above it that exists.
func existing(dir string) (string, unix.Statfs_t, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", unix.Statfs_t{}, err
	}
	for {
		var s unix.Statfs_t
		err := unix.Statfs(dir, &s)
		if err == nil || dir == "/" || !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EACCES) {
			return dir, s, err
		}
		dir = filepath.Dir(dir)
	}
}

func checkRootDir(dir string) checkRecord {
	c := checkRecord{Check: "root directory", Status: checkWarn, Detail: dir}
	at, s, err := existing(dir)
	if err != nil {
		c.Detail = fmt.Sprintf("%s: %s", at, err)
		c.Advice = "choose another with --root"
		return c
	}
	fs, free := fsName(int64(s.Type)), int64(s.Bavail)*int64(s.Bsize)
	direct := directIO(at)
	c.Detail = fmt.Sprintf("%s on %s, %s free, %s", dir, fs, humanSize(free), direct)
	switch fs {
	case "tmpfs", "ramfs":
		c.Advice = "a reboot clears it: choose a directory on a disk with --root"
		return c
	case "btrfs":
		c.Advice = "copy on write makes loopback pools slow: choose another directory with --root, or `chattr +C` it before the pool is made"
		return c
	case "nfs", "fuse", "overlay":
		c.Advice = "loopback pools do not belong on it: choose a directory on ext4 or xfs with --root"
		return c
	}
	if free < leastFree {
		c.Advice = "too little for layers: make space, or choose another directory with --root"
		return c
	}
	if direct == noDirectIO {
		c.Advice = "data passes the page cache twice: choose a directory on ext4 or xfs with --root"
		return c
	}
	c.Status = checkOK
	return c
}

func fsName(magic int64) string {
	// Some architectures sign-extend the 32 bits.
	if name, ok := magics[magic&0xffffffff]; ok {
		return name
	}
	return fmt.Sprintf("file system type %#x", magic&0xffffffff)
}

const (
	hasDirectIO = "direct I/O"
	noDirectIO  = "no direct I/O"
)

// directIO opens a file without a name, so that nothing is left behind.
func directIO(dir string) string {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_DIRECT|unix.O_CLOEXEC, 0o600)
	switch {
	case err == nil:
		unix.Close(fd)
		return hasDirectIO
	case errors.Is(err, unix.EINVAL):
		return noDirectIO
	}
	return "direct I/O not tried: " + err.Error()
}

func checkRunDir(dir string) checkRecord {
	c := checkRecord{Check: "run directory", Status: checkWarn, Detail: dir}
	at, s, err := existing(dir)
	if err != nil {
		c.Detail = fmt.Sprintf("%s: %s", at, err)
		c.Advice = "choose another with --run"
		return c
	}
	fs := fsName(int64(s.Type))
	c.Detail = fmt.Sprintf("%s on %s", dir, fs)
	if fs != "tmpfs" && fs != "ramfs" {
		c.Advice = "it must be empty after a reboot: choose a directory on a tmpfs with --run"
		return c
	}
	c.Status = checkOK
	return c
}
