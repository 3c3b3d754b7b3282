package layer_test

import (
	"context"
	"encoding/binary"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// asVM gives a node's device to fn, as to a machine that may write to it whatever it likes.
func asVM(t testing.TB, s *layer.Store, name string, fn func(device string)) {
	t.Helper()
	ctx := pooltest.Context(t)
	path, err := s.Attach(ctx, name, false)
	must(t, err)
	fn(path)
	must(t, s.Detach(ctx, name))
}

// mountAsVM mounts an attached device as its machine would, runs fn and unmounts it.
func mountAsVM(t testing.TB, fs, device string, fn func(dir string)) {
	t.Helper()
	dir := t.TempDir()
	must(t, fsutil.Mount(pooltest.Context(t), device, dir, fsutil.MountOptions{Type: fsutil.Type(fs)}))
	fn(dir)
	must(t, fsutil.Unmount(pooltest.Context(t), dir, fsutil.UnmountOptions{}))
}

// goDown is EXT4_IOC_SHUTDOWN and XFS_IOC_GOINGDOWN: the file system stops as at a power cut, its journal
// written and not replayed (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_fs.h).
func goDown(t testing.TB, dir string) {
	t.Helper()
	const ioctl, flushLog = 0x8004587d, 1
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), ioctl, flushLog))
}

// spoil damages a file system where the kernel would not look at a mount: the count of free inodes of ext4's first group,
// and of free blocks of xfs's second.
func spoil(t testing.TB, fs, device string) {
	t.Helper()
	sb := make([]byte, 1024)
	if fs == "xfs" {
		readAt(t, device, sb, 0)
		groupBytes := int64(binary.BigEndian.Uint32(sb[84:])) * int64(binary.BigEndian.Uint32(sb[4:])) // sb_agblocks, sb_blocksize
		agf := make([]byte, 512)
		readAt(t, device, agf, groupBytes+512)
		agf[52] ^= 0x55 // agf_freeblks
		writeAt(t, device, agf, groupBytes+512)
		return
	}
	// fs/ext4/ext4.h: struct ext4_group_desc; fs/ext4/super.c: ext4_group_desc_csum
	const uuid, freeInodes, checksum, descriptors = 0x68, 0x0e, 0x1e, 4096
	readAt(t, device, sb, 1024)
	desc := make([]byte, 64)
	readAt(t, device, desc, descriptors)
	binary.LittleEndian.PutUint16(desc[freeInodes:], binary.LittleEndian.Uint16(desc[freeInodes:])-5)
	binary.LittleEndian.PutUint16(desc[checksum:], 0)
	text := slices.Concat(sb[uuid:uuid+16], make([]byte, 4), desc)
	binary.LittleEndian.PutUint16(desc[checksum:], uint16(^crc32.Checksum(text, crc32.MakeTable(crc32.Castagnoli))))
	writeAt(t, device, desc, descriptors)
}

func writeAt(t testing.TB, device string, b []byte, offset int64) {
	t.Helper()
	f, err := os.OpenFile(device, os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteAt(b, offset)
	must(t, err)
	must(t, fsutil.Flush(f))
	must(t, f.Close())
}

func readAt(t testing.TB, path string, b []byte, offset int64) {
	t.Helper()
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	_, err = f.ReadAt(b, offset)
	must(t, err)
}

func wantForeign(t testing.TB, s *layer.Store, want bool, names ...string) {
	t.Helper()
	for _, name := range names {
		n, err := s.Get(pooltest.Context(t), name)
		must(t, err)
		if n.Foreign != want {
			t.Errorf("%s foreign: %v", name, n.Foreign)
		}
	}
}

// everyUse is what makes our kernel read a node's file system, and needs trust.
func everyUse(s *layer.Store, name string, trust bool) map[string]func(ctx context.Context) error {
	return map[string]func(ctx context.Context) error{
		"mount": func(ctx context.Context) error {
			_, err := s.Mount(ctx, name, "", layer.MountOptions{Trust: trust})
			return err
		},
		"mount read-only": func(ctx context.Context) error {
			_, err := s.Mount(ctx, name, "", layer.MountOptions{ReadOnly: true, Trust: trust})
			return err
		},
		"diff": func(ctx context.Context) error {
			if trust {
				return s.Trust(ctx, name)
			}
			return s.View(ctx, []string{name}, func(context.Context, []string) error { return nil })
		},
		"commit": func(ctx context.Context) error {
			_, err := s.Commit(ctx, name, "layer", layer.CommitOptions{Trust: trust})
			return err
		},
		"move": func(ctx context.Context) error {
			_, err := s.Commit(ctx, name, "layer", layer.CommitOptions{Trust: trust, Move: true})
			return err
		},
	}
}

// What a machine had is used by nobody who does not trust it; what stands on it is neither.
func TestForeignNeedsTrust(t *testing.T) {
	each(t, func(t *testing.T, _ *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		fs := filepath.Base(t.Name())
		files := map[string]string{"f": "of the machine"}
		makeSnapshot(t, s, "vm", "")
		asVM(t, s, "vm", func(device string) {
			mountAsVM(t, fs, device, func(dir string) { must(t, writeFiles(dir, files)) })
		})
		makeSnapshot(t, s, "child", "vm")
		wantForeign(t, s, true, "vm", "child")
		for _, name := range []string{"vm", "child"} {
			for what, use := range everyUse(s, name, false) {
				if err := use(ctx); errs.Class(err) != layer.ErrDamaged || !strings.Contains(errs.Hint(err), "--trust") {
					t.Errorf("%s of %s: %v (%s)", what, name, err, errs.Hint(err))
				}
			}
		}

		must(t, s.Trust(ctx, "child"))
		wantForeign(t, s, false, "child")
		wantForeign(t, s, true, "vm")
		wantFiles(t, s, "child", files)

		// What was made from it once it was checked never changes; it itself may.
		_, err := s.Commit(ctx, "vm", "copy", layer.CommitOptions{Trust: true})
		must(t, err)
		wantForeign(t, s, false, "copy")
		wantForeign(t, s, true, "vm")
		wantFiles(t, s, "copy", files)
		_, err = s.Commit(ctx, "vm", "moved", layer.CommitOptions{Trust: true, Move: true})
		must(t, err)
		wantForeign(t, s, false, "moved")
		wantFiles(t, s, "moved", files)
	})
}

// Trust does not take the place of a check: what fsck finds wrong is not mounted, whatever the user says.
func TestForeignDamaged(t *testing.T) {
	each(t, func(t *testing.T, e *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		makeSnapshot(t, s, "vm", "")
		asVM(t, s, "vm", func(device string) { spoil(t, filepath.Base(t.Name()), device) })
		before, err := e.Thins(ctx)
		must(t, err)
		for what, use := range everyUse(s, "vm", true) {
			if err := use(ctx); errs.Class(err) != layer.ErrDamaged || !strings.Contains(errs.Hint(err), "fsck --repair") {
				t.Errorf("%s: %v (%s)", what, err, errs.Hint(err))
			}
			wantForeign(t, s, true, "vm")
		}
		if i, err := s.Inspect(ctx, "vm"); err != nil || i.State != layer.StateInactive {
			t.Errorf("left behind: %+v, %v", i, err)
		}
		if after, err := e.Thins(ctx); err != nil || len(after) != len(before) {
			t.Errorf("thin devices %v, before %v: %v", after, before, err)
		}
		r, err := s.Fsck(ctx, "vm", true)
		must(t, err)
		if !r.Fixed {
			t.Errorf("repair: %+v", r)
		}
		wantForeign(t, s, true, "vm")
		_, err = s.Mount(ctx, "vm", "", layer.MountOptions{Trust: true})
		must(t, err)
		wantForeign(t, s, false, "vm")
		unmount(t, s, "vm")
	})
}

// No file system at all is damage too, not something that was not found.
func TestForeignIsNoFileSystem(t *testing.T) {
	each(t, func(t *testing.T, _ *pooltest.Env, s *layer.Store) {
		ctx := pooltest.Context(t)
		makeSnapshot(t, s, "vm", "")
		asVM(t, s, "vm", func(device string) { writeAt(t, device, make([]byte, 1<<20), 0) })
		for what, use := range everyUse(s, "vm", true) {
			if err := use(ctx); errs.Class(err) != layer.ErrDamaged {
				t.Errorf("%s: %v", what, err)
			}
		}
		wantForeign(t, s, true, "vm")
	})
}

// A machine that lost its power leaves a journal. e2fsck replays that of ext4; xfs's waits for a machine.
func TestForeignJournal(t *testing.T) {
	files := map[string]string{"f": "before the cut"}
	cut := func(t *testing.T, fs string) *layer.Store {
		s := pooltest.New(t, pool.Spec{FS: fs}).Open(t)
		makeSnapshot(t, s, "vm", "")
		asVM(t, s, "vm", func(device string) {
			mountAsVM(t, fs, device, func(dir string) {
				must(t, writeFiles(dir, files))
				must(t, fsutil.SyncFS(dir))
				must(t, os.WriteFile(filepath.Join(dir, "g"), nil, 0o600))
				goDown(t, dir)
			})
		})
		return s
	}
	t.Run("ext4", func(t *testing.T) {
		ctx := pooltest.Context(t)
		s := cut(t, "ext4")
		_, err := s.Commit(ctx, "vm", "copy", layer.CommitOptions{Trust: true})
		must(t, err)
		must(t, s.Trust(ctx, "vm"))
		for _, name := range []string{"copy", "vm"} {
			must(t, s.View(ctx, []string{name}, func(_ context.Context, roots []string) error {
				wantFile(t, roots[0], "f", files["f"])
				return nil
			}))
		}
	})
	t.Run("xfs", func(t *testing.T) {
		ctx := pooltest.Context(t)
		s := cut(t, "xfs")
		for what, use := range everyUse(s, "vm", true) {
			if err := use(ctx); errs.Class(err) != layer.ErrDamaged || !strings.Contains(errs.Hint(err), "dmlayer attach vm") {
				t.Errorf("%s: %v (%s)", what, err, errs.Hint(err))
			}
		}
		asVM(t, s, "vm", func(device string) { mountAsVM(t, "xfs", device, func(string) {}) })
		must(t, s.Trust(ctx, "vm"))
		must(t, s.View(ctx, []string{"vm"}, func(_ context.Context, roots []string) error {
			wantFile(t, roots[0], "f", files["f"])
			return nil
		}))
	})
}
