package fsutil_test

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// ext4 that could not write its journal to its place when it was unmounted leaves a journal that its superblock does not tell of: a
// repair replays it, and everything that was made durable is there.
func TestForgottenJournal(t *testing.T) {
	testenv.Need(t, testenv.Loop, testenv.Ext4)
	const size = 64 << 20
	file, copied := newFile(t, size), newFile(t, size)
	l := attach(t, fsutil.LoopOptions{Path: file})
	mkfs(t, l.Path, fsutil.MkfsOptions{Type: fsutil.Ext4})
	dir := mount(t, l.Path, fsutil.MountOptions{Type: fsutil.Ext4})
	write(t, filepath.Join(dir, "file"), "content")
	if err := fsutil.SyncDir(dir); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	image, err := os.ReadFile(file) // as after a power cut
	if err != nil {
		t.Fatal(err)
	}
	unmount(t, dir)

	super := image[1024:2048]
	le := binary.LittleEndian
	if le.Uint32(super[0x60:])&4 == 0 {
		t.Fatal("nothing to replay")
	}
	le.PutUint32(super[0x60:], le.Uint32(super[0x60:])&^4) // the mark
	le.PutUint16(super[0x3a:], le.Uint16(super[0x3a:])|2)  // errors
	le.PutUint32(super[0x3fc:], ^crc32.Checksum(super[:0x3fc], crc32.MakeTable(crc32.Castagnoli)))
	if err := os.WriteFile(copied, image, 0o600); err != nil {
		t.Fatal(err)
	}
	left := attach(t, fsutil.LoopOptions{Path: copied})
	if fs, err := fsutil.ReadFSOf(left.Path); err != nil || fs.NeedsRecovery || !fs.HasErrors {
		t.Fatalf("%+v, %v", fs, err)
	}
	r, err := fsutil.Fsck(t.Context(), left.Path, fsutil.Ext4, fsutil.FsckOptions{})
	if err != nil && !errors.Is(err, errs.ErrDamaged) || !strings.Contains(r.Output, "journal has data") {
		t.Fatalf("looked at: %+v, %v", r, err)
	}
	r, err = fsutil.Fsck(t.Context(), left.Path, fsutil.Ext4, fsutil.FsckOptions{Repair: true})
	if err != nil || !r.Clean || !r.Fixed {
		t.Fatalf("repaired: %+v, %v", r, err)
	}
	dir = mount(t, left.Path, fsutil.MountOptions{Type: fsutil.Ext4})
	mustRead(t, filepath.Join(dir, "file"), "content")
	unmount(t, dir)
}
