package fsutil

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// MountInfo is a mount, as a line of /proc/self/mountinfo has it (proc(5)).
type MountInfo struct {
	ID, Parent   int
	Dev          DevNum
	Root         string // the directory of the file system that is mounted
	Dir          string // where it is mounted, seen from this process's root
	Options      string // of the mount
	Optional     []string
	Type         string
	Source       string
	SuperOptions string // of the file system: "ro" here after errors=remount-ro
}

// ReadOnly says whether the mount or its file system refuses writes.
func (m MountInfo) ReadOnly() bool {
	return hasOption(strings.Split(m.Options, ","), "ro") || hasOption(strings.Split(m.SuperOptions, ","), "ro")
}

// Mounts returns the mounts of this process's mount namespace, in the order in which they were made. Detached
// mounts are in no namespace.
func Mounts() ([]MountInfo, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fail("list mounts in", "/proc/self/mountinfo", errors.Unwrap(err))
	}
	defer f.Close()
	return ParseMountInfo(f)
}

// MountsOf returns the mounts of one block device.
func MountsOf(major, minor uint32) ([]MountInfo, error) {
	all, err := Mounts()
	if err != nil {
		return nil, err
	}
	var of []MountInfo
	for _, m := range all {
		if m.Dev == (DevNum{major, minor}) {
			of = append(of, m)
		}
	}
	return of, nil
}

// ParseMountInfo reads lines in the format of /proc/self/mountinfo.
func ParseMountInfo(r io.Reader) ([]MountInfo, error) {
	var mounts []MountInfo
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		m, err := parseMount(lines.Text())
		if err != nil {
			return nil, fmt.Errorf("mountinfo line %q: %w", lines.Text(), err)
		}
		mounts = append(mounts, m)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read mountinfo: %w", err)
	}
	return mounts, nil
}

// parseMount reads "36 35 98:0 /root /dir opts [optional ...] - type source superopts".
func parseMount(line string) (m MountInfo, err error) {
	// Spaces inside of fields are escaped, so fields are what single spaces separate; the source may be empty.
	f := strings.Split(line, " ")
	dash := -1
	for i := 6; i < len(f); i++ {
		if f[i] == "-" {
			dash = i
			break
		}
	}
	if dash < 0 || len(f) < dash+3 {
		return m, fmt.Errorf("too few fields: %w", errs.ErrInvalid)
	}
	if m.ID, err = strconv.Atoi(f[0]); err != nil {
		return m, fmt.Errorf("field 1: %w: %w", errs.ErrInvalid, err)
	}
	if m.Parent, err = strconv.Atoi(f[1]); err != nil {
		return m, fmt.Errorf("field 2: %w: %w", errs.ErrInvalid, err)
	}
	if m.Dev, err = parseDevNum(f[2]); err != nil {
		return m, fmt.Errorf("field 3: %w", err)
	}
	m.Root, m.Dir, m.Options = unescape(f[3]), unescape(f[4]), f[5]
	m.Optional = f[6:dash]
	m.Type, m.Source = unescape(f[dash+1]), unescape(f[dash+2])
	m.SuperOptions = strings.Join(f[dash+3:], " ")
	return m, nil
}

// parseDevNum reads "major:minor".
func parseDevNum(s string) (DevNum, error) {
	major, minor, ok := strings.Cut(s, ":")
	a, err1 := strconv.ParseUint(major, 10, 32)
	b, err2 := strconv.ParseUint(minor, 10, 32)
	if !ok || err1 != nil || err2 != nil {
		return DevNum{}, fmt.Errorf("device number %q: %w", s, errs.ErrInvalid)
	}
	return DevNum{uint32(a), uint32(b)}, nil
}

// unescape undoes the kernel's \ooo for space, tab, newline, backslash and hash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// IsMountPoint says whether something is mounted at dir. Symbolic links in dir are followed.
func IsMountPoint(dir string) (bool, error) {
	var st unix.Statx_t
	err := retryEINTR(func() error { return unix.Statx(unix.AT_FDCWD, dir, unix.AT_NO_AUTOMOUNT, 0, &st) })
	if err != nil {
		return false, fail("look at", dir, err)
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	return listedMountPoint(dir) // before Linux 5.8
}

func listedMountPoint(dir string) (bool, error) {
	abs, err := filepath.Abs(dir)
	if err == nil {
		abs, err = filepath.EvalSymlinks(abs)
	}
	if err != nil {
		return false, fail("look at", dir, err)
	}
	mounts, err := Mounts()
	if err != nil {
		return false, err
	}
	for _, m := range mounts {
		if m.Dir == abs {
			return true, nil
		}
	}
	return false, nil
}
