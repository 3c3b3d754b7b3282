package fsutil

import (
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
)

func TestErrorClasses(t *testing.T) {
	for _, tc := range []struct {
		errno unix.Errno
		class error
		hint  string
	}{
		{unix.ENOSPC, errs.ErrNoSpace, "free some space"},
		{unix.EBUSY, errs.ErrBusy, ""},
		{unix.ENOENT, errs.ErrNotFound, ""},
		{unix.EEXIST, errs.ErrExists, ""},
		{unix.EPERM, errs.ErrUnsupported, "root"},
		{unix.EACCES, errs.ErrUnsupported, "root"},
		{unix.ENODEV, errs.ErrUnsupported, ""},
		{unix.EUCLEAN, errs.ErrDamaged, ""},
		{unix.EINVAL, errs.ErrInvalid, ""},
		{unix.EIO, nil, ""},
	} {
		err := fail("do", "it", fmt.Errorf("deep: %w", tc.errno))
		if errs.Class(err) != tc.class || !errors.Is(err, tc.errno) || !strings.Contains(errs.Hint(err), tc.hint) {
			t.Errorf("%v: class %v, hint %q", err, errs.Class(err), errs.Hint(err))
		}
		if !strings.HasPrefix(err.Error(), "do it: deep: ") {
			t.Errorf("text %q", err)
		}
	}
	if fail("do", "it", nil) != nil {
		t.Error("no error became one")
	}
	if err := fail("outer", "it", fail("inner", "it", errs.ErrBusy)); errs.Class(err) != errs.ErrBusy {
		t.Errorf("a class was lost: %v", err)
	}
}

func TestMountErrors(t *testing.T) {
	err := mountError("mount /dev/x on", "/y", XFS, unix.ENODEV)
	if !errors.Is(err, errs.ErrUnsupported) || errs.Hint(err) != "the kernel lacks this file system: modprobe xfs" {
		t.Errorf("%v, hint %q", err, errs.Hint(err))
	}
}

// The layouts are what the kernel's headers say.
func TestABI(t *testing.T) {
	for name, sizes := range map[string][2]uintptr{
		"struct fstrim_range":     {unsafe.Sizeof(fstrimRange{}), 24},
		"struct xfs_fsop_geom_v1": {unsafe.Sizeof(xfsGeometryV1{}), 112},
		"struct xfs_fs_eofblocks": {unsafe.Sizeof(xfsFreeEOF{}), 128},
		"struct xfs_growfs_data":  {unsafe.Sizeof(xfsGrowFSData{}), 16},
		"struct loop_config":      {unsafe.Sizeof(unix.LoopConfig{}), 304},
	} {
		if sizes[0] != sizes[1] {
			t.Errorf("%s has %d bytes, want %d", name, sizes[0], sizes[1])
		}
	}
	for name, reqs := range map[string][2]uintptr{
		"FITRIM":               {reqFITRIM, 0xc0185879},
		"EXT4_IOC_RESIZE_FS":   {reqExt4ResizeFS, 0x40086610},
		"XFS_IOC_FSGEOMETRY":   {reqXFSGeometryV1, 0x80705864},
		"XFS_IOC_FSGROWFSDATA": {reqXFSGrowFSData, 0x4010586e},
		"BLKDISCARD":           {reqBLKDISCARD, unix.BLKDISCARD},
		"BLKGETSIZE64":         {reqBLKGETSIZE64, 0x80081272},
		"LOOP_CTL_ADD":         {reqLoopCtlAdd, unix.LOOP_CTL_ADD},
		"LOOP_CTL_GET_FREE":    {reqLoopCtlGetFree, unix.LOOP_CTL_GET_FREE},
	} {
		if reqs[0] != reqs[1] {
			t.Errorf("%s is %#x, want %#x", name, reqs[0], reqs[1])
		}
	}
}

func TestMkfsArguments(t *testing.T) {
	const gib = 1 << 30
	for _, tc := range []struct {
		name string
		got  []string
		want string
	}{
		{"ext4 on a zeroing pool", ext4Args(MkfsOptions{UUID: "u", Label: "l"}, 10*gib, true),
			"-q -F -m 0 -b 4096 -J size=32 -E nodiscard,lazy_itable_init=1,lazy_journal_init=1,assume_storage_prezeroed=1 -U u -L l"},
		{"ext4 elsewhere", ext4Args(MkfsOptions{}, 10*gib, false),
			"-q -F -m 0 -b 4096 -J size=32 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0"},
		{"large ext4", ext4Args(MkfsOptions{}, 100*gib, false),
			"-q -F -m 0 -b 4096 -J size=64 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0"},
		{"small ext4", ext4Args(MkfsOptions{}, gib/16, false),
			"-q -F -m 0 -b 4096 -E nodiscard,lazy_itable_init=0,lazy_journal_init=0"},
		{"xfs", xfsArgs(MkfsOptions{UUID: "u", Label: "l"}), "-q -f -K -m uuid=u -L l"},
	} {
		if got := strings.Join(tc.got, " "); got != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.name, got, tc.want)
		}
	}
}

func TestE2fsprogsVersion(t *testing.T) {
	for text, want := range map[string]bool{
		"mke2fs 1.47.0 (5-Feb-2023)\n\tUsing EXT2FS Library version 1.47.0": true,
		"mke2fs 1.46.5 (30-Dec-2021)":                                       false,
		"mke2fs 1.47.1-rc1 (1-Jan-2024)":                                    true,
		"mke2fs 2.0 (1-Jan-2030)":                                           true,
		"noise\nmke2fs 1.50 (x)":                                            true,
		"mkfs.ext4 from BusyBox":                                            false,
		"":                                                                  false,
	} {
		if got := e2fsprogsAtLeast(text, 1, 47); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

func TestMkfsErrors(t *testing.T) {
	for stderr, class := range map[string]error{
		"size 4096 of data subvolume is too small, minimum 300MB":                    errs.ErrInvalid,
		"/dev/loop0 is mounted; will not make a filesystem here!":                    errs.ErrBusy,
		"mkfs.xfs: cannot open /dev/loop0: Device or resource busy":                  errs.ErrBusy,
		"Warning, had trouble writing out superblocks: No space left on device":      errs.ErrNoSpace,
		"mkfs.ext4: Input/output error while writing out and closing file system":    nil,
		"Bad option(s) specified: assume_storage_prezeroed\n\nExtended options are…": errs.ErrInvalid,
	} {
		err := mkfsError("/dev/x", Ext4, &run.Error{Program: "mkfs.ext4", ExitCode: 1, Stderr: stderr + "\nUsage: mkfs\n too small"})
		var re *run.Error
		if errs.Class(err) != class || !errors.As(err, &re) || re.Stderr != stderr {
			t.Errorf("%q: class %v", stderr, errs.Class(err))
		}
	}
}

func TestParseOptions(t *testing.T) {
	for _, tc := range []struct {
		in    string
		flags uintptr
		attrs int
		data  []string
	}{
		{"", 0, 0, nil},
		{"defaults", 0, 0, nil},
		{"ro,nosuid", unix.MS_RDONLY | unix.MS_NOSUID, unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID, nil},
		{"ro,rw", 0, 0, nil},
		{"nodev,noexec,data=ordered, discard ,,", unix.MS_NODEV | unix.MS_NOEXEC, unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC, []string{"data=ordered", "discard"}},
		{"noatime", unix.MS_NOATIME, unix.MOUNT_ATTR_NOATIME, nil},
		{"noatime,relatime", unix.MS_RELATIME, unix.MOUNT_ATTR_RELATIME, nil},
		{"relatime,strictatime", unix.MS_STRICTATIME, unix.MOUNT_ATTR_STRICTATIME, nil},
		{"strictatime,noatime,nodiratime", unix.MS_NOATIME | unix.MS_NODIRATIME, unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NODIRATIME, nil},
		{"sync,dirsync,lazytime", unix.MS_SYNCHRONOUS | unix.MS_DIRSYNC | unix.MS_LAZYTIME, 0, nil},
		{`context="a,b",x`, 0, 0, []string{`context="a,b"`, "x"}},
	} {
		p, err := ParseOptions(tc.in)
		if err != nil || p.Flags != tc.flags || p.attrs != tc.attrs || !slices.Equal(p.Data, tc.data) {
			t.Errorf("%q: %+v, %v", tc.in, p, err)
		}
	}
	for _, in := range []string{"bind", "ro,remount", "shared", "loop", "a\x00b"} {
		if _, err := ParseOptions(in); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestTypeOptions(t *testing.T) {
	for _, tc := range []struct {
		o    MountOptions
		data string
		ro   bool
	}{
		{MountOptions{Type: Ext4}, "errors=remount-ro,noinit_itable", false},
		{MountOptions{Type: Ext4, ReadOnly: true, Extra: []string{"rw", "errors=panic,init_itable=5"}}, "errors=panic,init_itable=5", true},
		{MountOptions{Type: XFS, Extra: []string{"ro,nouuid"}}, "nouuid", true},
		{MountOptions{Type: XFS, Extra: []string{"logbsize=64k"}}, "nouuid,logbsize=64k", false},
		{MountOptions{Type: XFS, Extra: []string{"discard"}}, "nouuid,discard", false},
		{MountOptions{Type: Ext4, Extra: []string{"discard,data=ordered"}}, "errors=remount-ro,noinit_itable,data=ordered", false},
	} {
		p, err := tc.o.parsed()
		if err != nil || strings.Join(p.Data, ",") != tc.data || p.ReadOnly() != tc.ro {
			t.Errorf("%+v: %+v, %v", tc.o, p, err)
		}
	}
	if _, err := (MountOptions{Type: "btrfs"}).parsed(); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("btrfs: %v", err)
	}
}

func TestParseMountInfo(t *testing.T) {
	const text = `22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw
36 35 254:3 /a\040b /mnt/new\012line\134x\043 ro,noatime master:1 propagate_from:2 - ext4 /dev/dm-3 ro,errors=remount-ro
37 35 0:50 / /empty rw -  none rw
38 35 0:51 / /nosource rw - tmpfs  rw,size=1k

`
	got, err := ParseMountInfo(strings.NewReader(text))
	if err != nil || len(got) != 4 {
		t.Fatalf("%d mounts, %v", len(got), err)
	}
	want := MountInfo{
		ID: 36, Parent: 35, Dev: DevNum{254, 3}, Root: "/a b", Dir: "/mnt/new\nline\\x#", Options: "ro,noatime",
		Optional: []string{"master:1", "propagate_from:2"}, Type: "ext4", Source: "/dev/dm-3", SuperOptions: "ro,errors=remount-ro",
	}
	if !reflect.DeepEqual(got[1], want) {
		t.Errorf("got %+v", got[1])
	}
	if !got[1].ReadOnly() || got[0].ReadOnly() {
		t.Error("read-only is wrong")
	}
	if got[3].Source != "" || got[3].SuperOptions != "rw,size=1k" {
		t.Errorf("got %+v", got[3])
	}
	for _, bad := range []string{"x", "1 2 3:4 / / rw", "a 2 3:4 / / rw - t s o", "1 2 3 / / rw - t s o", "1 2 3:x / / rw - t s o", "1 b 3:4 / / rw - t s o"} {
		if _, err := ParseMountInfo(strings.NewReader(bad)); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestOwnMounts(t *testing.T) {
	mounts, err := Mounts()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(mounts, func(m MountInfo) bool { return m.Dir == "/proc" && m.Type == "proc" }) {
		t.Error("/proc is not mounted")
	}
	for dir, want := range map[string]bool{"/proc": true, "/proc/self": false} {
		is, err := IsMountPoint(dir)
		if err != nil || is != want {
			t.Errorf("IsMountPoint(%s): %v, %v", dir, is, err)
		}
		if dir == "/proc" {
			if is, err := listedMountPoint(dir); err != nil || !is {
				t.Errorf("listedMountPoint(%s): %v, %v", dir, is, err)
			}
		}
	}
	if is, err := listedMountPoint("/proc/self/fd"); err != nil || is {
		t.Errorf("listedMountPoint: %v, %v", is, err)
	}
	if _, err := IsMountPoint("/nowhere"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("got %v", err)
	}
}

func TestJudgeE2fsck(t *testing.T) {
	for _, tc := range []struct {
		code         int
		out          string
		repair       bool
		clean, fixed bool
		class        error
		ok           bool
	}{
		{code: 0, clean: true, ok: true},
		{code: 1, repair: true, clean: true, fixed: true, ok: true},
		{code: 3, repair: true, clean: true, fixed: true, ok: true},
		{code: 4, class: errs.ErrDamaged},
		{code: 5, repair: true, fixed: true, class: errs.ErrDamaged},
		{code: 8, out: "/dev/x is in use.", class: errs.ErrBusy},
		{code: 8, out: "The superblock could not be read", class: errs.ErrDamaged},
		{code: 8, out: "Input/output error"},
		{code: 12, out: "gave up"},
		{code: 16},
		{code: 32},
		{code: 128},
	} {
		r, err := judgeE2fsck(tc.code, FsckOptions{Repair: tc.repair}, tc.out, &run.Error{ExitCode: tc.code})
		if r.Clean != tc.clean || r.Fixed != tc.fixed || errs.Class(err) != tc.class || (err == nil) != tc.ok {
			t.Errorf("code %d: %+v, %v", tc.code, r, err)
		}
	}
}

func TestJudgeXFSRepair(t *testing.T) {
	for _, tc := range []struct {
		code   int
		out    string
		repair bool
		want   FsckResult
		class  error
	}{
		{code: 0, want: FsckResult{Clean: true}},
		{code: 4, repair: true, want: FsckResult{Clean: true, Fixed: true}},
		{code: 1, class: errs.ErrDamaged},
		{code: 2, repair: true, class: errs.ErrDamaged},
		{code: 1, out: "ALERT: The filesystem has valuable metadata changes in a log", class: errs.ErrDamaged},
		{code: 1, out: "xfs_repair: /dev/x contains a mounted filesystem", class: errs.ErrBusy},
	} {
		r, err := judgeXFSRepair(tc.code, FsckOptions{Repair: tc.repair}, tc.out, &run.Error{ExitCode: tc.code})
		if r != tc.want || errs.Class(err) != tc.class || (err == nil) != (tc.class == nil) {
			t.Errorf("code %d, %q: %+v, %v", tc.code, tc.out, r, err)
		}
		if dirty := tc.code == 2 || strings.Contains(tc.out, "a log"); dirty != strings.Contains(errs.Hint(err), "replays its log") {
			t.Errorf("code %d, %q: hint %q", tc.code, tc.out, errs.Hint(err))
		}
	}
}

func TestResolveDeleted(t *testing.T) {
	name := t.TempDir() + "/x (deleted)"
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	l := LoopInfo{BackingFile: name, Dev: uint64(st.Dev), Inode: st.Ino}
	if l.resolveDeleted(); l.Deleted || l.BackingFile != name {
		t.Errorf("a file that is called so: %+v", l)
	}
	l.Inode++
	if l.resolveDeleted(); !l.Deleted || l.BackingFile != strings.TrimSuffix(name, " (deleted)") {
		t.Errorf("a deleted file: %+v", l)
	}
}

// broken is a device that cannot be read from some place on.
type broken struct {
	io.ReaderAt
	from int64
}

func (b broken) ReadAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > b.from {
		return 0, unix.EIO
	}
	return b.ReaderAt.ReadAt(p, off)
}
