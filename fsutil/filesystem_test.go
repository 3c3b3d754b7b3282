package fsutil_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

const testUUID = "01020304-0506-4708-890a-0b0c0d0e0f10"

func TestMkfs(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		mkfs(t, l.Path, fsutil.MkfsOptions{Type: typ, UUID: testUUID, Label: "mine"})
		size, err := fsutil.SizeOf(l.File)
		if err != nil {
			t.Fatal(err)
		}
		got, err := fsutil.ReadFSOf(l.Path)
		if err != nil || got.Type != typ || got.UUID != testUUID || got.Label != "mine" || got.BlockSize != 4096 || got.Size != size || got.HasErrors {
			t.Errorf("%+v, %v", got, err)
		}
		found, err := fsutil.Probe(l.Path)
		if err != nil || len(found) != 1 || found[0].Type != string(typ) || found[0].UUID != testUUID || found[0].Label != "mine" {
			t.Errorf("%+v, %v", found, err)
		}
		if recovery, err := fsutil.NeedsRecovery(l.Path, typ); err != nil || recovery != (typ == fsutil.XFS) {
			t.Errorf("recovery: %v, %v", recovery, err)
		}
	})
}

func TestMkfsRefuses(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		if err := fsutil.Mkfs(t.Context(), l.Path, fsutil.MkfsOptions{Type: typ}); !errors.Is(err, errs.ErrBusy) {
			t.Errorf("mounted: %v", err)
		}
		unmount(t, dir)
		tiny := attach(t, fsutil.LoopOptions{Path: newFile(t, 4096)})
		var re *run.Error
		if err := fsutil.Mkfs(t.Context(), tiny.Path, fsutil.MkfsOptions{Type: typ}); !errors.As(err, &re) {
			t.Errorf("tiny: %v", err)
		}
		if err := fsutil.Mkfs(t.Context(), "/dev/nowhere", fsutil.MkfsOptions{Type: typ}); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("no device: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := fsutil.Mkfs(ctx, l.Path, fsutil.MkfsOptions{Type: typ}); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if err := fsutil.Mkfs(t.Context(), l.Path, fsutil.MkfsOptions{Type: "reiserfs"}); !errors.Is(err, errs.ErrUnsupported) {
			t.Errorf("type: %v", err)
		}
	})
}

// What a template and each of its children cost: the reason for the options of mkfs and mount.
func TestMkfsCost(t *testing.T) {
	testenv.Need(t, testenv.Loop, testenv.Ext4)
	file := newFile(t, 10<<30)
	l := attach(t, fsutil.LoopOptions{Path: file})
	mkfs(t, l.Path, fsutil.MkfsOptions{Type: fsutil.Ext4, Zeroed: true})
	if err := fsutil.Flush(l.File); err != nil {
		t.Fatal(err)
	}
	base := allocated(t, file)
	if base > 8<<20 {
		t.Errorf("mkfs wrote %d KiB for 10 GiB", base>>10)
	}
	dir := mount(t, l.Path, fsutil.MountOptions{Type: fsutil.Ext4})
	if err := fsutil.RemoveLostFound(dir); err != nil {
		t.Error(err)
	}
	unmount(t, dir)
	if err := fsutil.Flush(l.File); err != nil {
		t.Fatal(err)
	}
	if more := allocated(t, file) - base; more > 1<<20 {
		t.Errorf("mounting wrote %d KiB", more>>10)
	}
}

func TestRemoveLostFound(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		for range 2 {
			if err := fsutil.RemoveLostFound(dir); err != nil {
				t.Fatal(err)
			}
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
			t.Errorf("%v, %v", entries, err)
		}
		if err := os.Mkdir(dir+"/lost+found", 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, dir+"/lost+found/#12", "precious")
		if err := fsutil.RemoveLostFound(dir); !errors.Is(err, errs.ErrExists) {
			t.Errorf("with content: %v", err)
		}
		mustRead(t, dir+"/lost+found/#12", "precious")
	})
}

func TestGrow(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		for _, private := range []bool{false, true} {
			var dir string
			var d *fsutil.Detached
			if private {
				d = detached(t, l.Path, fsutil.MountOptions{Type: typ})
				dir = d.Path()
			} else {
				dir = mount(t, l.Path, fsutil.MountOptions{Type: typ})
			}
			write(t, dir+"/file", "content")
			before, err := fsutil.Size(t.Context(), dir)
			if err != nil || before.Behind() || before.FS == 0 {
				t.Fatalf("%+v, %v", before, err)
			}
			if err := fsutil.Grow(t.Context(), dir); err != nil {
				t.Fatalf("nothing to do: %v", err)
			}
			want := before.Device * 3
			if err := fsutil.Extend(t.Context(), file, want, fsutil.Sparse); err != nil {
				t.Fatal(err)
			}
			if err := l.SetCapacity(); err != nil {
				t.Fatal(err)
			}
			if s, err := fsutil.Size(t.Context(), dir); err != nil || !s.Behind() || s.Device != want || s.FS != before.FS {
				t.Errorf("%+v, %v", s, err)
			}
			programs := run.Started()
			err = fsutil.Grow(t.Context(), dir)
			if typ == fsutil.Ext4 && !mayGrowExt4(t) {
				if !errors.Is(err, errs.ErrUnsupported) || !strings.Contains(errs.Hint(err), "CAP_SYS_RESOURCE") {
					t.Errorf("without CAP_SYS_RESOURCE: %v, hint %q", err, errs.Hint(err))
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if run.Started() != programs {
				t.Error("a program was started")
			}
			if s, err := fsutil.Size(t.Context(), dir); err != nil || s.Behind() || s.FS != want {
				t.Errorf("%+v, %v, want %d", s, err, want)
			}
			mustRead(t, dir+"/file", "content")
			if private {
				closeDetached(t, d)
			} else {
				unmount(t, dir)
			}
		}
		if r, err := fsutil.Fsck(t.Context(), l.Path, typ, fsutil.FsckOptions{}); err != nil || !r.Clean {
			t.Errorf("%+v, %v", r, err)
		}
		got, err := fsutil.ReadFSOf(l.Path)
		if size, serr := fsutil.SizeOf(l.File); err != nil || serr != nil || got.Size != size {
			t.Errorf("%+v, %v, %v", got, err, serr)
		}
	})
}

// Growing by more than mke2fs reserved for, in one go and then again, also where the journal is small; and without
// writing the inode tables of the new part, which a thin device would have to keep.
func TestGrowExt4Far(t *testing.T) {
	testenv.Need(t, testenv.Loop, testenv.Ext4)
	if !mayGrowExt4(t) {
		t.Log("without CAP_SYS_RESOURCE ext4 cannot grow: see TestGrow")
		return
	}
	const mib, gib = 1 << 20, 1 << 30
	for _, sizes := range [][]uint64{{64 * mib, 10 * gib, 300 * gib}, {600 * mib, 20 * gib}, {10 * gib, 60 * gib}} {
		t.Run(fmt.Sprint(sizes[0]/mib, " MiB"), func(t *testing.T) {
			file := newFile(t, sizes[0])
			l := attach(t, fsutil.LoopOptions{Path: file})
			mkfs(t, l.Path, fsutil.MkfsOptions{Type: fsutil.Ext4, Zeroed: true})
			d := detached(t, l.Path, fsutil.MountOptions{Type: fsutil.Ext4})
			for _, size := range sizes[1:] {
				if err := fsutil.Extend(t.Context(), file, size, fsutil.Sparse); err != nil {
					t.Fatal(err)
				}
				if err := l.SetCapacity(); err != nil {
					t.Fatal(err)
				}
				if err := fsutil.Grow(t.Context(), d.Path()); err != nil {
					t.Fatal(err)
				}
				if s, err := fsutil.Size(t.Context(), d.Path()); err != nil || s.FS+128*mib <= size {
					t.Errorf("%+v, %v, want %d", s, err, size)
				}
			}
			options, err := os.ReadFile(fmt.Sprintf("/proc/fs/ext4/loop%d/options", l.Number))
			if err != nil || !strings.Contains(string(options), "noinit_itable\n") {
				t.Errorf("noinit_itable is lost, %v:\n%s", err, options)
			}
			closeDetached(t, d)
			if r, err := fsutil.Fsck(t.Context(), l.Path, fsutil.Ext4, fsutil.FsckOptions{}); err != nil || !r.Clean {
				t.Errorf("%+v, %v", r, err)
			}
			zeroed := strings.Count(tool(t, "dumpe2fs", l.Path), "ITABLE_ZEROED")
			if groups := int(sizes[0]/(128*mib)) + 1; zeroed > groups {
				t.Errorf("%d inode tables are written, %d are mkfs's", zeroed, groups)
			}
		})
	}
}

// mayGrowExt4 says whether this process has CAP_SYS_RESOURCE, which sandboxes take away even from root.
func mayGrowExt4(t *testing.T) bool {
	t.Helper()
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

func TestGrowRefuses(t *testing.T) {
	testenv.Need(t, testenv.Root)
	dir := mountMemory(t, "tmpfs", "")
	if err := fsutil.Grow(t.Context(), dir); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("tmpfs: %v", err)
	}
	if _, err := fsutil.Size(t.Context(), dir); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("tmpfs: %v", err)
	}
	if err := fsutil.Grow(t.Context(), dir+"/none"); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("no folder: %v", err)
	}
}

func TestTrim(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		if _, err := fsutil.Trim(t.Context(), dir); err != nil { // what never was used
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+"/big", bytes.Repeat([]byte("x"), 16<<20), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := fsutil.SyncFS(dir); err != nil {
			t.Fatal(err)
		}
		full := allocated(t, file)
		if err := os.Remove(dir + "/big"); err != nil {
			t.Fatal(err)
		}
		unmount(t, dir) // xfs frees the blocks of a removed file in the background
		dir = mount(t, l.Path, fsutil.MountOptions{Type: typ})
		n, err := fsutil.Trim(t.Context(), dir)
		if err != nil || n < 16<<20 {
			t.Errorf("%d bytes were trimmed, %v", n, err)
		}
		if freed := full - allocated(t, file); freed < 15<<20 {
			t.Errorf("%d bytes were freed in the file", freed)
		}
	})
	testenv.Need(t, testenv.Root)
	if _, err := fsutil.Trim(t.Context(), mountMemory(t, "tmpfs", "")); !errors.Is(err, errs.ErrUnsupported) {
		t.Errorf("tmpfs: %v", err)
	}
}

func TestFsckClean(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		for _, o := range []fsutil.FsckOptions{{}, {Repair: true}, {Repair: true, Thorough: true}} {
			r, err := fsutil.Fsck(t.Context(), l.Path, typ, o)
			if err != nil || !r.Clean || r.Fixed || r.Output == "" {
				t.Errorf("%+v: %+v, %v", o, r, err)
			}
		}
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		if r, err := fsutil.Fsck(t.Context(), l.Path, typ, fsutil.FsckOptions{Repair: true}); !errors.Is(err, errs.ErrBusy) {
			t.Errorf("mounted: %+v, %v", r, err)
		}
		unmount(t, dir)
	})
}

// Copies of a mounted file system have a dirty journal.
func TestDirtyJournal(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		dir := mount(t, l.Path, fsutil.MountOptions{Type: typ})
		for _, name := range []string{"a", "b", "c"} {
			write(t, dir+"/"+name, name)
		}
		syncDir(t, dir) // into the journal
		dirty := attach(t, fsutil.LoopOptions{Path: copyFile(t, file)})
		unmount(t, dir)
		if recovery, err := fsutil.NeedsRecovery(dirty.Path, typ); err != nil || !recovery {
			t.Errorf("recovery: %v, %v", recovery, err)
		}
		r, err := fsutil.Fsck(t.Context(), dirty.Path, typ, fsutil.FsckOptions{Repair: true})
		switch typ {
		case fsutil.Ext4:
			if err != nil || !r.Clean {
				t.Errorf("e2fsck replays the journal: %+v, %v", r, err)
			}
		case fsutil.XFS:
			if !errors.Is(err, errs.ErrDamaged) || !strings.Contains(errs.Hint(err), "mount") {
				t.Errorf("xfs_repair: %+v, %v", r, err)
			}
			d := detached(t, dirty.Path, fsutil.MountOptions{Type: typ}) // replays the log
			closeDetached(t, d)
			if r, err := fsutil.Fsck(t.Context(), dirty.Path, typ, fsutil.FsckOptions{}); err != nil || !r.Clean {
				t.Errorf("after a mount: %+v, %v", r, err)
			}
		}
		again := mount(t, dirty.Path, fsutil.MountOptions{Type: typ})
		mustRead(t, again+"/c", "c")
		unmount(t, again)
	})
}

func syncDir(t *testing.T, dir string) {
	t.Helper()
	for _, name := range []string{"a", "b", "c"} {
		f, err := os.Open(dir + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
}

// damage overwrites a place in a device.
func damage(t *testing.T, l *fsutil.Loop, off int64, n int) {
	t.Helper()
	if _, err := l.File.WriteAt(bytes.Repeat([]byte{0xa5}, n), off); err != nil {
		t.Fatal(err)
	}
	if err := fsutil.Flush(l.File); err != nil {
		t.Fatal(err)
	}
}

func TestFsckDamage(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		switch typ {
		case fsutil.Ext4: // a wrong count, which needs no decision
			tool(t, "debugfs", "-w", "-R", "sif / links_count 9", l.Path)
		case fsutil.XFS: // the counters of the first group's free space
			damage(t, l, 512+0x34, 3)
		}
		r, err := fsutil.Fsck(t.Context(), l.Path, typ, fsutil.FsckOptions{})
		if !errors.Is(err, errs.ErrDamaged) || r.Clean || r.Fixed {
			t.Fatalf("damage was not seen: %+v, %v", r, err)
		}
		r, err = fsutil.Fsck(t.Context(), l.Path, typ, fsutil.FsckOptions{Repair: true})
		if err != nil || !r.Clean || !r.Fixed {
			t.Fatalf("not repaired: %+v, %v", r, err)
		}
		if r, err = fsutil.Fsck(t.Context(), l.Path, typ, fsutil.FsckOptions{}); err != nil || !r.Clean {
			t.Errorf("after the repair: %+v, %v", r, err)
		}
	})
}

// Damage that e2fsck leaves to a human is an error with a hint, until it is told to answer yes.
func TestFsckThorough(t *testing.T) {
	testenv.Need(t, testenv.Loop, testenv.Ext4)
	l := attach(t, fsutil.LoopOptions{Path: newFile(t, 64<<20)})
	mkfs(t, l.Path, fsutil.MkfsOptions{Type: fsutil.Ext4})
	dir := mount(t, l.Path, fsutil.MountOptions{Type: fsutil.Ext4})
	for _, name := range []string{"/a", "/a/b", "/a/b/c"} {
		if err := os.Mkdir(dir+name, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	unmount(t, dir)
	tool(t, "debugfs", "-w", "-R", "clri /a/b", l.Path)
	r, err := fsutil.Fsck(t.Context(), l.Path, fsutil.Ext4, fsutil.FsckOptions{Repair: true})
	if !errors.Is(err, errs.ErrDamaged) || r.Clean || !strings.Contains(errs.Hint(err), "snapshot") {
		t.Errorf("%+v, %v, hint %q", r, err, errs.Hint(err))
	}
	r, err = fsutil.Fsck(t.Context(), l.Path, fsutil.Ext4, fsutil.FsckOptions{Repair: true, Thorough: true})
	if err != nil || !r.Clean || !r.Fixed {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestFsckOfNothing(t *testing.T) {
	eachType(t, func(t *testing.T, typ fsutil.Type, file string, l *fsutil.Loop) {
		blank := attach(t, fsutil.LoopOptions{Path: newFile(t, 1<<20)})
		if r, err := fsutil.Fsck(t.Context(), blank.Path, typ, fsutil.FsckOptions{}); !errors.Is(err, errs.ErrDamaged) {
			t.Errorf("blank: %+v, %v", r, err)
		}
		if r, err := fsutil.Fsck(t.Context(), "/dev/nowhere", typ, fsutil.FsckOptions{}); !errors.Is(err, errs.ErrNotFound) {
			t.Errorf("no device: %+v, %v", r, err)
		}
	})
}
