package pool_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

// No volume group is made on a disk that carries something, is used by somebody, or of which that cannot be told: it says what was found,
// and the disk stays what it is.
func TestVolumesDiskRefused(t *testing.T) {
	testenv.Need(t, testenv.LVM)
	r := newRawBench(t)
	ctx := pooltest.Context(t)
	disk := pooltest.NewLoopDisk(t, 64<<20, 0)
	refused := func(what, path string, force bool, class error, words ...string) {
		t.Helper()
		before, err := os.ReadFile(disk.File)
		must(t, err)
		spec := onDisk(path)
		spec.Force = force
		err = pool.Create(ctx, r.dirs, spec)
		if !errors.Is(err, class) {
			t.Errorf("%s: %v", what, err)
			return
		}
		for _, w := range words {
			if !strings.Contains(err.Error()+" "+errs.Hint(err), w) {
				t.Errorf("%s: %v does not say %q", what, err, w)
			}
		}
		if now, err := os.ReadFile(disk.File); err != nil || string(now) != string(before) {
			t.Errorf("%s: the disk was changed, %v", what, err)
		}
		if left, err := filepath.Glob(filepath.Join(r.dirs.Root, "pools", "*")); err != nil || len(left) > 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
	}
	refused("missing", "/dev/none", true, errs.ErrNotFound, "/dev/none")
	refused("no block device", disk.File, true, errs.ErrInvalid, disk.File)
	small := pooltest.NewLoopDisk(t, 7<<20, 0)
	refused("too small", small.Path, true, errs.ErrNoSpace, small.Path, fmt.Sprint(7<<20))

	entry := "\x00\x00\x00\x00\x83\x00\x00\x00\x00\x08\x00\x00" + string([]byte{0, 0x30, 0, 0}) + strings.Repeat("\x00", 48) + "\x55\xaa"
	for off, text := range map[int64]string{1080: "\x53\xef", 446: entry, 64<<20 - 512: "EFI PART", 4086: "SWAPSPACE2", 64<<20 - 8192: "\xfc\x4e\x2b\xa9"} {
		r.write(disk, off, text)
		refused(fmt.Sprintf("%q", text), disk.Path, false, errs.ErrExists, disk.Path)
		r.write(disk, off, strings.Repeat("\x00", len(text)))
	}
	held, err := fsutil.OpenExclusive(disk.Path, false)
	must(t, err)
	refused("claimed", disk.Path, true, errs.ErrBusy, disk.Path, "claimed")
	must(t, held.Close())
	onTop, remove := r.dm("lvm-top", "linear", r.number(disk.Path)+" 0", 64<<20)
	refused("held", disk.Path, true, errs.ErrBusy, "held by "+filepath.Base(onTop))
	remove()
	unreadable, remove := r.dm("lvm-error", "error", "", 64<<20)
	refused("unreadable", unreadable, true, errs.ErrBusy, "cannot be told")
	remove()
	refusedReadOnly(t, refused)

	// Other pools' disks, of which one does not run.
	must(t, r.create(r.data.Path, r.meta.Path, false))
	refusedOther := func(what, path string, force bool, class error, words ...string) {
		t.Helper()
		spec := onDisk(path)
		spec.Force = force
		said(t, pool.Create(ctx, r.dirs, spec), class, words...)
	}
	refusedOther("a pool that runs", r.data.Path, true, errs.ErrBusy, "held by")
	must(t, pool.Stop(ctx, r.dirs, "raw"))
	refusedOther("a pool", r.data.Path, false, errs.ErrExists, `the data of pool "raw"`)
	must(t, pool.Destroy(ctx, r.dirs, "raw"))
	other := pooltest.Dirs(t)
	must(t, pool.Create(ctx, other, onDisk(disk.Path)))
	refusedOther("a pool on volumes that runs", disk.Path, true, errs.ErrBusy, "held by")
	must(t, pool.Stop(ctx, other, pooltest.PoolName))
	refusedOther("a pool on volumes", disk.Path, false, errs.ErrExists, "lvm2")
	must(t, pool.Destroy(ctx, other, pooltest.PoolName))
}

func refusedReadOnly(t *testing.T, refused func(what, path string, force bool, class error, words ...string)) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "read-only")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, unix.Truncate(file, 64<<20))
	loop, err := fsutil.Attach(pooltest.Context(t), fsutil.LoopOptions{Path: file, ReadOnly: true, Autoclear: true})
	must(t, err)
	refused("read-only", loop.Path, true, errs.ErrUnsupported, "read-only", loop.Path)
	must(t, loop.Close())
	must(t, fsutil.Detach(pooltest.Context(t), loop.Number))
}

// A disk of 4 KiB sectors, of a size that is no multiple of anything: a pool is made on it, works, and is taken away.
func TestVolumesOnLargeSectors(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LVM, testenv.ThinCheck)
	disk := pooltest.NewLoopDisk(t, 160<<20+4096, 4096)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	must(t, pool.Create(pooltest.Context(t), e.Dirs, onDisk(disk.Path)))
	fillPool(t, e)
	wantPool(t, e)
	must(t, e.Check(pooltest.Context(t)))
	destroy(t, e)
	if found, err := fsutil.Probe(disk.Path); err != nil || len(found) > 0 {
		t.Errorf("left on the disk: %v, %v", found, err)
	}
}
