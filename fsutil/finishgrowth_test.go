package fsutil_test

import (
	"encoding/binary"
	"errors"
	"os"
	"testing"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// A power cut after the growth of an xfs was logged leaves the copies of the superblock as they were. FinishGrowth brings them up.
func TestFinishGrowth(t *testing.T) {
	testenv.Need(t, testenv.Loop, testenv.XFS)
	const before, after = 300 << 20, 800 << 20
	file := newFile(t, before)
	l := attach(t, fsutil.LoopOptions{Path: file})
	mkfs(t, l.Path, fsutil.MkfsOptions{Type: fsutil.XFS})
	groups := copiesOfSuperblock(t, file)
	if err := fsutil.Extend(t.Context(), file, after, fsutil.Sparse); err != nil {
		t.Fatal(err)
	}
	if err := l.SetCapacity(); err != nil {
		t.Fatal(err)
	}
	clean := func() bool {
		r, err := fsutil.Fsck(t.Context(), l.Path, fsutil.XFS, fsutil.FsckOptions{})
		if err != nil && !errors.Is(err, errs.ErrDamaged) {
			t.Fatal(err)
		}
		return err == nil && r.Clean
	}
	d := detached(t, l.Path, fsutil.MountOptions{Type: fsutil.XFS})
	if err := fsutil.Grow(t.Context(), d.Path()); err != nil {
		t.Fatal(err)
	}
	if err := fsutil.FinishGrowth(t.Context(), d.Path()); err != nil {
		t.Fatal(err)
	}
	closeDetached(t, d)
	if !clean() {
		t.Fatal("not clean after a growth")
	}

	f, err := os.OpenFile(l.Path, os.O_RDWR|os.O_SYNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for at, sector := range groups {
		if _, err := f.WriteAt(sector, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if clean() {
		t.Fatal("clean with old copies of the superblock: the test shows nothing")
	}
	d = detached(t, l.Path, fsutil.MountOptions{Type: fsutil.XFS})
	if err := fsutil.FinishGrowth(t.Context(), d.Path()); err != nil {
		t.Fatal(err)
	}
	closeDetached(t, d)
	if !clean() {
		t.Error("still damaged")
	}
}

// copiesOfSuperblock returns the first sector of each allocation group but the first, by its place.
func copiesOfSuperblock(t *testing.T, file string) map[int64][]byte {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sector := func(at int64) []byte {
		b := make([]byte, 512)
		if _, err := f.ReadAt(b, at); err != nil {
			t.Fatal(err)
		}
		return b
	}
	be, first := binary.BigEndian, sector(0)
	copies := map[int64][]byte{}
	for ag := int64(1); ag < int64(be.Uint32(first[88:])); ag++ {
		at := ag * int64(be.Uint32(first[84:])) * int64(be.Uint32(first[4:]))
		copies[at] = sector(at)
	}
	if len(copies) == 0 {
		t.Fatal("one allocation group")
	}
	return copies
}
