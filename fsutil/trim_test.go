package fsutil_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
)

// shutDown has a file system stop as after an error, without any.
func shutDown(t *testing.T, dir string) {
	t.Helper()
	const shutdownAtOnce = 2
	flags := uint32(shutdownAtOnce) // of XFS_IOC_GOINGDOWN and EXT4_IOC_SHUTDOWN, which are one
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), 0x8004587d, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		t.Fatal(errno)
	}
}

// What a file system has deleted that has stopped is there again after the next mount, and is not discarded.
func TestTrimStopped(t *testing.T) {
	stops := map[string]func(t *testing.T, dir string, l *fsutil.Loop){
		"shut down": func(t *testing.T, dir string, _ *fsutil.Loop) { shutDown(t, dir) },
		"errors": func(t *testing.T, _ string, l *fsutil.Loop) {
			if err := os.WriteFile("/sys/fs/ext4/"+filepath.Base(l.Path)+"/trigger_fs_error", []byte("test"), 0); err != nil {
				t.Fatal(err)
			}
		},
	}
	for how, stop := range stops {
		t.Run(how, func(t *testing.T) {
			eachType(t, func(t *testing.T, typ fsutil.Type, _ string, l *fsutil.Loop) {
				if how == "errors" && typ != fsutil.Ext4 {
					return // it has only the one way
				}
				dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
				content := strings.Repeat("x", 4<<20)
				write(t, dir+"/big", content)
				if err := fsutil.SyncFS(dir); err != nil {
					t.Fatal(err)
				}
				if err := os.Remove(dir + "/big"); err != nil {
					t.Fatal(err)
				}
				stop(t, dir, l)
				for range 2 {
					if n, err := fsutil.Trim(t.Context(), dir); !errors.Is(err, fsutil.ErrStopped) || n > 0 {
						t.Errorf("%d bytes were trimmed, %v", n, err)
					}
				}
				unmount(t, dir)
				if typ == fsutil.Ext4 {
					if _, err := fsutil.Fsck(t.Context(), l.Path, typ, fsutil.FsckOptions{Repair: true}); err != nil {
						t.Fatal(err)
					}
				}
				dir = mount(t, l.Path, fsutil.MountOptions{Type: typ})
				if got, err := os.ReadFile(dir + "/big"); err != nil || string(got) != content {
					t.Errorf("%d bytes of %d, %v", len(got), len(content), err)
				}
				if _, err := fsutil.Trim(t.Context(), dir); err != nil {
					t.Error(err)
				}
				unmount(t, dir)
			})
		})
	}
}
