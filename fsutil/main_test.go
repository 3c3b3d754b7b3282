package fsutil_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// The test binary is also the process that is killed while it has a private mount.
func TestMain(m *testing.M) {
	if len(os.Args) == 4 && os.Args[1] == "detached-mount" {
		d, err := fsutil.DetachedMount(context.Background(), os.Args[2], fsutil.MountOptions{Type: fsutil.Type(os.Args[3])})
		if err == nil {
			err = os.WriteFile(d.Path()+"/mine", []byte("x"), 0o600)
		}
		fmt.Println(err)
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(1)
	}
	testenv.Main(m)
}

// types are the file systems that every test of file systems runs on.
var types = []struct {
	fsutil.Type
	feature testenv.Feature
	size    uint64 // enough for mkfs
}{
	{fsutil.Ext4, testenv.Ext4, 64 << 20},
	{fsutil.XFS, testenv.XFS, 320 << 20},
}

// eachType runs a test on a fresh file system of each type, on a loop device.
func eachType(t *testing.T, f func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop)) {
	t.Helper()
	for _, typ := range types {
		t.Run(string(typ.Type), func(t *testing.T) {
			testenv.Need(t, testenv.Loop, typ.feature)
			file := newFile(t, typ.size)
			l := attach(t, fsutil.LoopOptions{Path: file})
			mkfs(t, l.Path, fsutil.MkfsOptions{Type: typ.Type, Zeroed: true})
			f(t, typ.Type, file, l)
		})
	}
}

func newFile(t testing.TB, size uint64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := fsutil.Allocate(t.Context(), path, size, fsutil.Sparse); err != nil {
		t.Fatal(err)
	}
	return path
}

// attach attaches a loop device for the time of the test.
func attach(t testing.TB, o fsutil.LoopOptions) *fsutil.Loop {
	t.Helper()
	o.Autoclear = true
	l, err := fsutil.Attach(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func mkfs(t testing.TB, dev string, o fsutil.MkfsOptions) {
	t.Helper()
	if err := fsutil.Mkfs(t.Context(), dev, o); err != nil {
		t.Fatal(err)
	}
}

// mount mounts for the time of the test and returns where.
func mount(t testing.TB, dev string, o fsutil.MountOptions) string {
	t.Helper()
	dir := t.TempDir()
	if err := fsutil.Mount(t.Context(), dev, dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if is, err := fsutil.IsMountPoint(dir); err == nil && is {
			if err := fsutil.Unmount(context.WithoutCancel(t.Context()), dir, fsutil.UnmountOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	return dir
}

func unmount(t testing.TB, dir string) {
	t.Helper()
	if err := fsutil.Unmount(t.Context(), dir, fsutil.UnmountOptions{}); err != nil {
		t.Fatal(err)
	}
}

// mustBeFree fails where anything still has the device, at this very moment.
func mustBeFree(t testing.TB, dev string) {
	t.Helper()
	f, err := fsutil.OpenExclusive(dev, false)
	if err != nil {
		t.Fatalf("somebody still has the device: %v", err)
	}
	// A plain Close would leave a claim in a program that is just being started.
	if err := fsutil.BetweenStarts(f.Close); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func mustRead(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Fatalf("%s: %q, %v, want %q", path, got, err, want)
	}
}

// tool runs a program and returns what it prints.
func tool(t testing.TB, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = filepath.Join("/usr/sbin", name)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}
