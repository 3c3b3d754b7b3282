package pool_test

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/pool"
	"github.com/dmlayer/dmlayer/test/pooltest"
)

var errDied = errors.New("died")

// dying makes fn fail at a point, and its undo too, as if it had been killed.
func dying(t *testing.T, point string, fn func() error) {
	t.Helper()
	fault.Set(func(p string) error {
		if p == point || p == "pool.destroy.devices" {
			return errDied
		}
		return nil
	})
	err := fn()
	fault.Set(nil)
	if !errors.Is(err, errDied) {
		t.Fatalf("it did not die at %s: %v", point, err)
	}
}

func read(t *testing.T, d *pooltest.LoopDisk) []byte {
	t.Helper()
	b, err := os.ReadFile(d.File)
	must(t, err)
	return b
}

func unchanged(t *testing.T, what string, d *pooltest.LoopDisk, before []byte) {
	t.Helper()
	now, n := read(t, d), 0
	for i := range now {
		if now[i] != before[i] {
			n++
		}
	}
	if n > 0 {
		t.Errorf("%s: %d bytes of the disk differ", what, n)
	}
}

// noise fills a disk, so that what discards take away is seen, with signatures for a create to wipe.
func noise(t *testing.T, d *pooltest.LoopDisk, signature string, at int64) []byte {
	t.Helper()
	f, err := fsutil.OpenDevice(d.Path, true)
	must(t, err)
	size, err := fsutil.SizeOf(f)
	must(t, err)
	_, err = io.CopyN(f, rand.Reader, int64(size))
	must(t, err)
	_, err = f.WriteAt([]byte(signature), at)
	must(t, errors.Join(err, f.Sync(), f.Close()))
	return read(t, d)
}

const extSignature = "\x53\xef" // at 1080

func forced(path string) pool.Spec {
	spec := onDisk(path)
	spec.Force = true
	return spec
}

// leftOf returns what a root directory holds of pools.
func leftOf(t *testing.T, dirs pool.Dirs) (names []string) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(dirs.Root, "pools", "*", "*"))
	must(t, err)
	for _, l := range left {
		names = append(names, filepath.Base(l))
	}
	return names
}

// An undo writes to no disk but the one that was saved, whatever is called so by then, and waits for it where it is not there.
func TestVolumesUndoFindsDisk(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	const size = 24 << 20
	disk, other := pooltest.NewLoopDisk(t, size, 0), pooltest.NewLoopDisk(t, size, 0)
	before := noise(t, disk, extSignature, 1080)
	must(t, fsutil.Mkfs(ctx, other.Path, fsutil.MkfsOptions{Type: fsutil.Ext4}))
	others := read(t, other)
	for _, point := range []string{"pool.lvm.disk-wiped", "pool.lvm.group"} {
		dirs := pooltest.Dirs(t)
		disk.Detach(t)
		other.Detach(t)
		disk.Attach(t)
		was := disk.Path
		dying(t, point, func() error { return pool.Create(ctx, dirs, forced(disk.Path)) })
		disk.Detach(t)
		other.Attach(t)
		if other.Path != was {
			t.Fatalf("the other disk is %s, the first was %s", other.Path, was)
		}
		if point == "pool.lvm.group" { // restarted meanwhile
			forgetBoot(t, dirs)
		}
		_, err := pool.Inspect(ctx, dirs, pooltest.PoolName)
		said(t, err, errs.ErrDamaged, was)
		unchanged(t, "another disk, "+point, other, others)
		if left := strings.Join(leftOf(t, dirs), " "); !strings.Contains(left, "disks.saved") || !strings.Contains(left, "records.db") {
			t.Errorf("%s: what was saved has gone: %s", point, left)
		}
		disk.Attach(t)
		_, err = pool.Inspect(ctx, dirs, pooltest.PoolName)
		mustFail(t, err, errs.ErrNotFound)
		unchanged(t, "the disk, "+point, disk, before)
		if left := leftOf(t, dirs); len(left) > 0 {
			t.Errorf("%s: left %v", point, left)
		}
	}
	// Somebody has made something else of it meanwhile.
	dirs := pooltest.Dirs(t)
	dying(t, "pool.lvm.disk-wiped", func() error { return pool.Create(ctx, dirs, forced(disk.Path)) })
	must(t, fsutil.Mkfs(ctx, disk.Path, fsutil.MkfsOptions{Type: fsutil.Ext4}))
	before = read(t, disk)
	_, err := pool.Inspect(ctx, dirs, pooltest.PoolName)
	mustFail(t, err, errs.ErrDamaged)
	unchanged(t, "made anew", disk, before)
	must(t, os.RemoveAll(filepath.Join(dirs.Root, "pools", pooltest.PoolName)))
}

// forgetBoot makes what a create has saved that of another boot.
func forgetBoot(t *testing.T, dirs pool.Dirs) {
	t.Helper()
	path := filepath.Join(dirs.Root, "pools", pooltest.PoolName, "disks.saved")
	b, err := os.ReadFile(path)
	must(t, err)
	// The head of the second entry, of 32 bytes, and its data (docs/formats.md).
	head, le, table := b[48:80], binary.LittleEndian, crc32.MakeTable(crc32.Castagnoli)
	data := b[80 : 80+le.Uint64(head[16:])]
	copy(data[bytes.Index(data, []byte(`"boot":"`))+8:], "another-")
	le.PutUint32(head[24:], crc32.Checksum(data, table))
	le.PutUint32(head[28:], crc32.Checksum(head[:28], table))
	must(t, os.WriteFile(path, b, 0o600))
}

// Killed while it puts the disk back, an undo is finished by the next command, though lvm2 cannot read the disk any more.
func TestVolumesUndoKilled(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	disk := pooltest.NewLoopDisk(t, 24<<20, 0)
	before := noise(t, disk, extSignature, 1080)
	dirs := pooltest.Dirs(t)
	dying(t, "pool.lvm.group", func() error { return pool.Create(ctx, dirs, forced(disk.Path)) })
	pooltest.LVM(t, "vgremove", "-f", "-y", "dmlayer-"+pooltest.PoolName)
	f, err := fsutil.OpenDevice(disk.Path, true)
	must(t, err)
	_, err = f.WriteAt(before[1024:1<<20], 1024) // all but the first sectors
	must(t, errors.Join(err, f.Sync(), f.Close()))
	forgetBoot(t, dirs)
	_, err = pool.Inspect(ctx, dirs, pooltest.PoolName)
	mustFail(t, err, errs.ErrNotFound)
	unchanged(t, "put back", disk, before)
}

// Whatever lvm2 is configured to do, and wherever there are signatures: a create that fails leaves every byte as it was.
func TestVolumesUndoWhateverConfigured(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.Ext4, testenv.LVM, testenv.ThinCheck)
	etc := t.TempDir()
	config := "devices {\n issue_discards = 1\n}\nmetadata {\n pvmetadatacopies = 2\n}\nbackup { backup=0 archive=0 }\n"
	must(t, os.WriteFile(filepath.Join(etc, "lvm.conf"), []byte(config), 0o600))
	t.Setenv("LVM_SYSTEM_DIR", etc)
	disk := pooltest.NewLoopDisk(t, 24<<20, 0)
	e := &pooltest.Env{Dirs: pooltest.Dirs(t), Name: pooltest.PoolName}
	spec := forced(disk.Path)
	spec.DataSize = 8 << 20
	for what, signature := range map[string]struct {
		text string
		at   int64
	}{
		"ext":                       {extSignature, 1080},
		"in the volume of the data": {"_BHRfS_M", 5<<20 + 64<<10 + 64}, // btrfs, 64 KiB into it
	} {
		before := noise(t, disk, signature.text, signature.at)
		createFails(t, e, spec, "pool.create.labelled")
		unchanged(t, what, disk, before)
	}
}

// A destroy that died waits for its disk, and leaves no volume group on it.
func TestVolumesDestroyWaitsForDisk(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	disk := pooltest.NewLoopDisk(t, 24<<20, 0)
	for _, point := range []string{"pool.destroy.devices", "pool.lvm.group-removed"} {
		dirs := pooltest.Dirs(t)
		must(t, pool.Create(ctx, dirs, onDisk(disk.Path)))
		fault.Set(func(p string) error {
			if p == point {
				return errDied
			}
			return nil
		})
		err := pool.Destroy(ctx, dirs, pooltest.PoolName)
		fault.Set(nil)
		mustFail(t, err, errDied)
		if point == "pool.destroy.devices" {
			pooltest.LVM(t, "vgchange", "-an", "dmlayer-test")
		}
		disk.Detach(t)
		_, err = pool.Inspect(ctx, dirs, pooltest.PoolName)
		said(t, err, errs.ErrDamaged, "dmlayer-test")
		disk.Attach(t)
		_, err = pool.Inspect(ctx, dirs, pooltest.PoolName)
		mustFail(t, err, errs.ErrNotFound)
		if found, err := fsutil.Probe(disk.Path); err != nil || len(found) > 0 {
			t.Errorf("%s: left on the disk: %v, %v", point, found, err)
		}
		if left := leftOf(t, dirs); len(left) > 0 {
			t.Errorf("%s: left %v", point, left)
		}
	}
}

// A create that died, in whose group somebody has made a volume: the group stays on the disk, and nothing else of the create.
func TestVolumesUndoLeavesOthers(t *testing.T) {
	testenv.Need(t, testenv.Root, testenv.DM, testenv.Loop, testenv.LVM, testenv.ThinCheck)
	ctx := pooltest.Context(t)
	disk := pooltest.NewLoopDisk(t, 24<<20, 0)
	dirs := pooltest.Dirs(t)
	dying(t, "pool.lvm.group", func() error { return pool.Create(ctx, dirs, onDisk(disk.Path)) })
	pooltest.LVM(t, "lvcreate", "-y", "-an", "-l", "1", "-n", "mine", "dmlayer-test")
	_, err := pool.Inspect(ctx, dirs, pooltest.PoolName)
	mustFail(t, err, errs.ErrNotFound)
	if now := volumesOf(t, "dmlayer-test"); !strings.HasPrefix(now, "mine ") {
		t.Errorf("volumes: %s", now)
	}
	if left := leftOf(t, dirs); len(left) > 0 {
		t.Errorf("left %v", left)
	}
	pooltest.LVM(t, "vgremove", "-f", "-y", "dmlayer-test")
}
