package fsutil_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

func hasSuper(m fsutil.MountInfo, option string) bool {
	for _, o := range strings.Split(m.SuperOptions, ",") {
		if o == option {
			return true
		}
	}
	return false
}

func TestMount(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ, Extra: []string{"nosuid,nodev"}})
		write(t, dir+"/file", "content")
		mounts, err := fsutil.MountsOf(l.DevNum.Major, l.DevNum.Minor)
		if err != nil || len(mounts) != 1 {
			t.Fatalf("%+v, %v", mounts, err)
		}
		m := mounts[0]
		if m.Dir != dir || m.Type != string(typ) || m.Source != l.Path || m.ReadOnly() || m.Options != "rw,nosuid,nodev,relatime" {
			t.Errorf("%+v", m)
		}
		want := map[fsutil.Type]string{fsutil.Ext4: "errors=remount-ro", fsutil.XFS: "nouuid"}[typ]
		if !hasSuper(m, want) {
			t.Errorf("%s lacks %s", m.SuperOptions, want)
		}
		if is, err := fsutil.IsMountPoint(dir); err != nil || !is {
			t.Errorf("a mount point: %v, %v", is, err)
		}
		if _, err := fsutil.OpenExclusive(l.Path, false); !errors.Is(err, errs.ErrBusy) {
			t.Errorf("a mounted device was claimed: %v", err)
		}
		if err := fsutil.SyncFS(dir); err != nil {
			t.Error(err)
		}
		unmount(t, dir)
		mustBeFree(t, l.Path)
		if is, err := fsutil.IsMountPoint(dir); err != nil || is {
			t.Errorf("no mount point any more: %v, %v", is, err)
		}

		dir = mount(t, l.Path, fsutil.MountOptions{Type: typ, ReadOnly: true})
		mustRead(t, dir+"/file", "content")
		if err := os.WriteFile(dir+"/other", nil, 0o600); err == nil {
			t.Error("it can be written to")
		}
		unmount(t, dir)
		mustBeFree(t, l.Path)
	})
}

// xfs must not retry for ever when a pool is full.
func TestXFSGivesUp(t *testing.T) {
	testenv.Need(t, testenv.Loop, testenv.XFS)
	l := attach(t, fsutil.LoopOptions{Path: newFile(t, 320<<20)})
	mkfs(t, l.Path, fsutil.MkfsOptions{Type: fsutil.XFS})
	check := func(t *testing.T) {
		t.Helper()
		for _, kind := range []string{"ENOSPC", "EIO", "default"} {
			b, err := os.ReadFile(fmt.Sprintf("/sys/fs/xfs/loop%d/error/metadata/%s/max_retries", l.Number, kind))
			if err != nil || string(b) != "0\n" {
				t.Errorf("retries after %s: %q, %v", kind, b, err)
			}
		}
	}
	t.Run("mounted", func(t *testing.T) {
		mount(t, l.Path, fsutil.MountOptions{Type: fsutil.XFS})
		check(t)
	})
	t.Run("private", func(t *testing.T) {
		d := detached(t, l.Path, fsutil.MountOptions{Type: fsutil.XFS})
		check(t)
		closeDetached(t, d)
	})
	t.Run("mounted by somebody else", func(t *testing.T) {
		if err := fsutil.StopRetries(l.DevNum); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("not mounted: %v", err)
		}
		dir := t.TempDir()
		if err := unix.Mount(l.Path, dir, "xfs", 0, "nouuid"); err != nil {
			t.Fatal(err)
		}
		defer unmount(t, dir)
		mounted, err := fsutil.MountedXFS()
		if err != nil || !slices.Contains(mounted, l.DevNum) {
			t.Errorf("mounted: %v, %v", mounted, err)
		}
		if err := fsutil.StopRetries(l.DevNum); err != nil {
			t.Error(err)
		}
		check(t)
	})
}

// Two copies of one file system have one UUID, and are mounted side by side.
func TestMountCopies(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		if err := fsutil.Flush(l.File); err != nil {
			t.Fatal(err)
		}
		other := attach(t, fsutil.LoopOptions{Path: copyFile(t, file)})
		a := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		b := mount(t, other.Path, fsutil.MountOptions{Type: typ})
		write(t, a+"/which", "a")
		write(t, b+"/which", "b")
		mustRead(t, a+"/which", "a")
		unmount(t, a)
		unmount(t, b)
	})
}

// copyFile makes a sparse copy of an image.
func copyFile(t *testing.T, path string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "copy")
	out, err := exec.Command("cp", "--sparse=always", path, to).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return to
}

func TestMountRefuses(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		blank := attach(t, fsutil.LoopOptions{Path: newFile(t, 1<<20)})
		cancelled, cancel := context.WithCancel(t.Context())
		cancel()
		dir := t.TempDir()
		for name, tc := range map[string]struct {
			ctx  context.Context
			dev  string
			dir  string
			o    fsutil.MountOptions
			want error
		}{
			"cancelled":  {cancelled, l.Path, dir, fsutil.MountOptions{Type: typ}, context.Canceled},
			"no device":  {t.Context(), "/dev/nowhere", dir, fsutil.MountOptions{Type: typ}, errs.ErrNotFound},
			"blank":      {t.Context(), blank.Path, dir, fsutil.MountOptions{Type: typ}, errs.ErrInvalid},
			"bad option": {t.Context(), l.Path, dir, fsutil.MountOptions{Type: typ, Extra: []string{"hedgehogs"}}, errs.ErrInvalid},
			"bind":       {t.Context(), l.Path, dir, fsutil.MountOptions{Type: typ, Extra: []string{"bind"}}, errs.ErrInvalid},
			"type":       {t.Context(), l.Path, dir, fsutil.MountOptions{Type: "minix"}, errs.ErrUnsupported},
			"no folder":  {t.Context(), l.Path, dir + "/none", fsutil.MountOptions{Type: typ}, errs.ErrNotFound},
		} {
			if err := fsutil.Mount(tc.ctx, tc.dev, tc.dir, tc.o); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.dev) {
				t.Errorf("%s: %v", name, err)
			}
			if name == "no folder" {
				continue
			}
			if d, err := fsutil.DetachedMount(tc.ctx, tc.dev, tc.o); !errors.Is(err, tc.want) || !strings.Contains(err.Error(), tc.dev) {
				t.Errorf("private, %s: %+v, %v", name, d, err)
			}
		}
		// The new mount API tells which option it was.
		_, err := fsutil.DetachedMount(t.Context(), l.Path, fsutil.MountOptions{Type: typ, Extra: []string{"hedgehogs=many"}})
		if err == nil || !strings.Contains(err.Error(), "hedgehogs") {
			t.Errorf("got %v", err)
		}
		mustBeFree(t, l.Path)
	})
}

func TestUnmount(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		user, err := os.Create(dir + "/open")
		if err != nil {
			t.Fatal(err)
		}
		defer user.Close()
		if err := fsutil.Unmount(t.Context(), dir, fsutil.UnmountOptions{}); !errors.Is(err, errs.ErrBusy) {
			t.Errorf("in use: %v", err)
		}
		if err := fsutil.Unmount(t.Context(), dir, fsutil.UnmountOptions{Lazy: true}); err != nil {
			t.Fatal(err)
		}
		if is, err := fsutil.IsMountPoint(dir); err != nil || is {
			t.Errorf("lazily unmounted, still a mount point: %v, %v", is, err)
		}
		if _, err := user.WriteString("still works"); err != nil {
			t.Error(err)
		}
		if err := user.Close(); err != nil {
			t.Error(err)
		}
		mustBeFree(t, l.Path)
		if err := fsutil.Unmount(t.Context(), dir, fsutil.UnmountOptions{}); !errors.Is(err, errs.ErrInvalid) || errs.Hint(err) == "" {
			t.Errorf("nothing mounted: %v", err)
		}
		if err := fsutil.Unmount(t.Context(), dir+"/none", fsutil.UnmountOptions{}); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("no folder: %v", err)
		}
	})
}

func detached(t *testing.T, dev string, o fsutil.MountOptions) *fsutil.Detached {
	t.Helper()
	d, err := fsutil.DetachedMount(t.Context(), dev, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func closeDetached(t *testing.T, d *fsutil.Detached) {
	t.Helper()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestDetachedMount(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		d := detached(t, l.Path, fsutil.MountOptions{Type: typ})
		if mounts, err := fsutil.MountsOf(l.DevNum.Major, l.DevNum.Minor); err != nil || len(mounts) != 0 {
			t.Errorf("everybody sees it: %+v, %v", mounts, err)
		}
		if err := os.MkdirAll(d.Path()+"/a/b", 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, d.Path()+"/a/b/file", "content")
		if err := d.Sync(); err != nil {
			t.Error(err)
		}
		closeDetached(t, d)
		mustBeFree(t, l.Path)
		closeDetached(t, d)
		if d.Fd() != -1 {
			t.Error("it has a descriptor after Close")
		}

		d = detached(t, l.Path, fsutil.MountOptions{Type: typ, ReadOnly: true, Extra: []string{"noatime,nosuid"}})
		mustRead(t, d.Path()+"/a/b/file", "content")
		if err := os.WriteFile(d.Path()+"/other", nil, 0o600); err == nil {
			t.Error("it can be written to")
		}
		closeDetached(t, d)
		mustBeFree(t, l.Path)
	})
}

// The device is free at the moment that Close returns, every time, also while programs are started, which
// have copies of all descriptors until they exec.
func TestDetachedCloseIsSynchronous(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		stop, stopped := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(stopped)
			for {
				select {
				case <-stop:
					return
				default:
					if err := run.Run(t.Context(), "true"); err != nil {
						t.Error(err)
					}
				}
			}
		}()
		defer func() { close(stop); <-stopped }()
		for i := range 40 {
			d := detached(t, l.Path, fsutil.MountOptions{Type: typ})
			write(t, d.Path()+"/file", fmt.Sprint(i))
			closeDetached(t, d)
			mustBeFree(t, l.Path)
		}
	})
}

func TestDetachedMountDiesWithProcess(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		exe, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		child := exec.Command(exe, "detached-mount", l.Path, string(typ))
		in, err := child.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		line, err := bufio.NewReader(out).ReadString('\n')
		if line != "<nil>\n" {
			t.Errorf("the other process says %q, %v", line, err)
		}
		if _, err := fsutil.OpenExclusive(l.Path, false); !errors.Is(err, errs.ErrBusy) {
			t.Errorf("it is not mounted: %v", err)
		}
		if err := child.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = child.Wait()
		mustBeFree(t, l.Path)
		d := detached(t, l.Path, fsutil.MountOptions{Type: typ}) // and can be used
		closeDetached(t, d)
	})
}
