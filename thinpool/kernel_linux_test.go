package thinpool_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/testenv"
	"github.com/dmlayer/dmlayer/thinpool"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

func write(t *testing.T, f *os.File, block int64, c byte) {
	t.Helper()
	if _, err := f.WriteAt(page(t, c), block*int64(blockSize.Bytes())); err != nil {
		t.Fatal(err)
	}
}

// holds wants block to consist of c.
func holds(t *testing.T, f *os.File, block int64, c byte) {
	t.Helper()
	b := page(t, 0)
	if _, err := f.ReadAt(b, block*int64(blockSize.Bytes())); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, bytes.Repeat([]byte{c}, len(b))) {
		t.Errorf("%s: block %d begins with %q, want %q", f.Name(), block, b[:4], c)
	}
}

// TestSnapshotOfActive takes a snapshot of a device that is in use.
func TestSnapshotOfActive(t *testing.T) {
	l := newKernelLab(t)
	p, dev := l.pool(t, 512)
	must(t, p.CreateThin(1))
	info, ref := l.thin(t, spec(dev, 1, 8*blockSize))
	origin := open(t, info)
	write(t, origin, 0, 'a')
	write(t, origin, 7, 'a')

	must(t, l.Suspend(t.Context(), ref, devmapper.SuspendOptions{}))
	must(t, p.CreateSnap(2, 1)) // the pool works while the origin is suspended
	_, err := l.Resume(ref, devmapper.ResumeOptions{})
	must(t, err)
	write(t, origin, 0, 'b')

	s := spec(dev, 2, 9*blockSize) // larger than its origin
	s.ReadOnly = true
	snapInfo, snapRef := l.thin(t, s)
	snap := open(t, snapInfo)
	holds(t, snap, 0, 'a')
	holds(t, snap, 7, 'a')
	holds(t, snap, 8, 0)
	holds(t, origin, 0, 'b')
	// The kernel lets it be opened for writing, and then refuses to write.
	if w, err := os.OpenFile(snap.Name(), os.O_RDWR|unix.O_DIRECT, 0); err == nil {
		if _, err := w.WriteAt(page(t, 'c'), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("write to a read-only device: %v", err)
		}
		w.Close()
	}
	status, err := thinpool.ReadThinStatus(l.Client, snapRef)
	if err != nil || status.Mapped != 2*blockSize || status.Highest == nil || *status.Highest != 8*blockSize-1 {
		t.Errorf("status of the snapshot: %+v, %v", status, err)
	}
	if st, err := p.Status(); err != nil || st.UsedData != 3 {
		t.Errorf("the pool uses %d blocks, want 3, %v", st.UsedData, err)
	}
	wantError(t, "deactivate while open", thinpool.Deactivate(l.Client, snapRef), devmapper.ErrBusy)
	must(t, snap.Close())
	must(t, thinpool.Deactivate(l.Client, snapRef), p.Delete(2))
	must(t, origin.Close())
}

// TestInternalSuspend suspends a pool: its thin devices say so in their way.
func TestInternalSuspend(t *testing.T) {
	onBoth(t, func(t *testing.T, l lab) {
		p, dev := l.pool(t, 512)
		must(t, p.CreateThin(1))
		_, ref := l.thin(t, spec(dev, 1, 2048))
		must(t, l.Suspend(t.Context(), p.Ref(), devmapper.SuspendOptions{}))
		info, err := l.Info(ref)
		if err != nil || !info.InternalSuspended || info.Suspended {
			t.Errorf("thin device of a suspended pool: %+v, %v", info, err)
		}
		must(t, p.CreateThin(2)) // messages work
		_, err = l.Resume(p.Ref(), devmapper.ResumeOptions{})
		must(t, err)
		if info, err := l.Info(ref); err != nil || info.InternalSuspended {
			t.Errorf("thin device of a resumed pool: %+v, %v", info, err)
		}
	})
}

// TestOutOfDataSpace fills a pool that fails writes, and grows it.
func TestOutOfDataSpace(t *testing.T) {
	l := newKernelLab(t)
	p, dev := l.pool(t, 16, func(t *thinpool.PoolTable) { t.ErrorIfNoSpace, t.LowWater = true, 4 })
	must(t, p.CreateThin(1))
	info, _ := l.thin(t, spec(dev, 1, 64*blockSize))
	f := open(t, info)
	events, err := l.Events(t.Context())
	must(t, err)
	for i := range int64(16) {
		write(t, f, i, 'x')
	}
	if _, err := f.WriteAt(page(t, 'x'), int64(16*blockSize.Bytes())); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full pool: %v", err)
	}
	var s thinpool.PoolStatus
	for eventNr := uint32(0); eventNr < 2; { // low water and the mode
		<-events
		s, info, err = p.StatusInfo()
		must(t, err)
		eventNr = info.EventNr
	}
	if s.Mode != thinpool.ModeOutOfDataSpace || s.FreeData() != 0 || !s.ErrorIfNoSpace || !s.Commits() {
		t.Errorf("status %+v", s)
	}
	must(t, p.CreateThin(2), p.CreateSnap(3, 2), p.Delete(3), p.Delete(2))

	table, _, err := p.Table()
	must(t, err)
	_, err = thinpool.ReloadPool(l.Client, p.Ref(), 32*blockSize, table)
	must(t, err)
	write(t, f, 16, 'x')
	if s, err := p.Status(); err != nil || s.Mode != thinpool.ModeReadWrite || s.UsedData != 17 {
		t.Errorf("after growing: %+v, %v", s, err)
	}
	must(t, f.Close())
}

// TestSuspendOfQueuedWrite has a write wait for space, which a suspension
// waits for in turn, until its context ends.
func TestSuspendOfQueuedWrite(t *testing.T) {
	l := newKernelLab(t)
	p, dev := l.pool(t, 16)
	must(t, p.CreateThin(1))
	info, ref := l.thin(t, spec(dev, 1, 64*blockSize))
	f := open(t, info)
	events, err := l.Events(t.Context())
	must(t, err)
	for i := range int64(16) {
		write(t, f, i, 'x')
	}
	written := make(chan error, 1)
	buf := page(t, 'y')
	go func() {
		_, err := f.WriteAt(buf, int64(16*blockSize.Bytes()))
		written <- err
	}()
	for {
		s, err := p.Status()
		must(t, err)
		if s.Mode == thinpool.ModeOutOfDataSpace {
			break
		}
		<-events
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = l.Suspend(ctx, ref, devmapper.SuspendOptions{NoLockFS: true})
	if !errors.Is(err, devmapper.ErrInterrupted) || strings.Contains(err.Error(), "not returned") {
		t.Errorf("suspend: %v", err)
	}
	if info, err := l.Info(ref); err != nil || info.Suspended {
		t.Errorf("after the interruption: %+v, %v", info, err)
	}
	table, _, err := p.Table()
	must(t, err)
	_, err = thinpool.ReloadPool(l.Client, p.Ref(), 32*blockSize, table)
	must(t, err)
	must(t, <-written)
	holds(t, f, 16, 'y')
	must(t, l.Suspend(t.Context(), ref, devmapper.SuspendOptions{}))
	_, err = l.Resume(ref, devmapper.ResumeOptions{})
	must(t, err, f.Close())
}

// TestMetadataFull uses metadata up until the pool refuses, and grows it.
func TestMetadataFull(t *testing.T) {
	l := newKernelLab(t)
	half, below := devmapper.SectorsOf(metaBytes/2), l.meta
	linear := func(n devmapper.Sectors) devmapper.Target {
		return devmapper.Target{Length: n, Type: "linear", Params: below.String() + " 0"}
	}
	meta := l.dm(t, "test-meta", linear(half))
	l.meta = meta.Dev
	p, _ := l.pool(t, 64)
	var err error
	var made thinpool.ID
	for ; made < 2000; made++ {
		if err = p.CreateThin(made); err != nil {
			break
		}
	}
	wantError(t, fmt.Sprintf("create number %d", made), err, thinpool.ErrOutOfSpace)
	s, serr := p.Status()
	if serr != nil || s.Mode != thinpool.ModeReadOnly || s.NeedsCheck || s.Commits() {
		t.Errorf("status %+v, %v", s, serr)
	}
	wantError(t, "delete", p.Delete(0), thinpool.ErrReadOnly, thinpool.ErrOutOfSpace)

	l.reload(t, devmapper.ByDev(meta.Dev), linear(2*half))
	table, length, err := p.Table()
	must(t, err)
	_, err = thinpool.ReloadPool(l.Client, p.Ref(), length, table)
	must(t, err)
	if s, err := p.Status(); err != nil || s.Mode != thinpool.ModeReadWrite || s.TotalMetadata != metaBytes/thinpool.MetadataBlockSize {
		t.Errorf("after growing: %+v, %v", s, err)
	}
	must(t, p.Delete(0), p.CreateThin(5000))
}

// TestCommitFails has the metadata device refuse writes: the message succeeds
// and only the status shows that nothing came of it.
func TestCommitFails(t *testing.T) {
	testenv.Need(t, testenv.Flakey)
	l := newKernelLab(t)
	size := devmapper.SectorsOf(metaBytes)
	linear := devmapper.Target{Length: size, Type: "linear", Params: l.meta.String() + " 0"}
	flakey := devmapper.Target{Length: size, Type: "flakey", Params: l.meta.String() + " 0 0 100 1 error_writes"}
	broken := devmapper.Target{Length: size, Type: "error"}
	meta := l.dm(t, "test-meta", linear)
	l.meta = meta.Dev
	ref := devmapper.ByDev(meta.Dev)
	p, dev := l.pool(t, 64)
	must(t, p.CreateThin(1))

	l.reload(t, ref, flakey)
	wantError(t, "create", p.CreateThin(2), thinpool.ErrNotCommitted, thinpool.ErrNeedsCheck)
	wantError(t, "create again", p.CreateThin(3), thinpool.ErrReadOnly, thinpool.ErrNeedsCheck)
	s, err := p.Status()
	if err != nil || s.Mode != thinpool.ModeReadOnly || !s.NeedsCheck || s.Commits() {
		t.Errorf("status %+v, %v", s, err)
	}
	_, err = thinpool.Activate(l.Client, spec(dev, 2, 2048))
	wantError(t, "activate what was lost", err, thinpool.ErrNoDevice)

	// With reads failing too, there is no going back.
	must(t, thinpool.Deactivate(l.Client, p.Ref()))
	l.reload(t, ref, linear)
	p, dev = l.pool(t, 64)
	_, thinRef := l.thin(t, spec(dev, 1, 2048))
	l.reload(t, ref, broken)
	if err := p.CreateThin(4); err == nil {
		t.Error("create with broken metadata: no error")
	}
	_, err = l.Status(p.Ref(), devmapper.StatusOptions{}) // makes it commit
	must(t, err)
	if s, err := p.Status(); err != nil || s.Mode != thinpool.ModeFail || s.Commits() {
		t.Errorf("status %+v, %v", s, err)
	}
	if s, err := thinpool.ReadThinStatus(l.Client, thinRef); err != nil || !s.Fail {
		t.Errorf("thin status %+v, %v", s, err)
	}
	wantError(t, "create in a failed pool", p.CreateThin(5), thinpool.ErrReadOnly)
}

// TestDiscard frees blocks, in the pool and on the device below.
func TestDiscard(t *testing.T) {
	l := newKernelLab(t)
	p, dev := l.pool(t, 512)
	must(t, p.CreateThin(1))
	info, ref := l.thin(t, spec(dev, 1, 64*blockSize))
	f := open(t, info)
	for i := range int64(8) {
		write(t, f, i, 'x')
	}
	used := func() uint64 {
		must(t, unix.Fsync(int(f.Fd())))
		s, err := p.Status()
		must(t, err)
		return s.UsedData
	}
	if n := used(); n != 8 {
		t.Errorf("%d blocks in use, want 8", n)
	}
	must(t, thinpool.Discard(t.Context(), f, 2*blockSize.Bytes(), 4*blockSize.Bytes()))
	if n := used(); n != 4 {
		t.Errorf("%d blocks in use after the discard, want 4", n)
	}
	holds(t, f, 1, 'x')
	holds(t, f, 2, 0)
	holds(t, f, 5, 0)
	holds(t, f, 6, 'x')
	if s, err := thinpool.ReadThinStatus(l.Client, ref); err != nil || s.Mapped != 4*blockSize {
		t.Errorf("status %+v, %v", s, err)
	}
	must(t, thinpool.Discard(t.Context(), f, 0, 0)) // nothing
	wantError(t, "beyond the end", thinpool.Discard(t.Context(), f, 64*blockSize.Bytes(), blockSize.Bytes()), unix.EINVAL)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, "nobody waits", thinpool.Discard(ctx, f, 0, blockSize.Bytes()), context.Canceled)
	if n := used(); n != 4 {
		t.Errorf("%d blocks in use in the end, want 4", n)
	}
	must(t, f.Close())
	if err := thinpool.Discard(t.Context(), f, 0, blockSize.Bytes()); err == nil {
		t.Error("discard on a closed file: no error")
	}
}

// TestSuperblockOfPool reads what the kernel wrote with package thinmeta.
func TestSuperblockOfPool(t *testing.T) {
	l := newKernelLab(t)
	f, err := os.Open(fmt.Sprintf("/dev/loop%d", l.meta.Minor))
	must(t, err)
	defer f.Close()
	read := func() (thinmeta.Superblock, error) {
		if err := unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0); err != nil {
			t.Fatal(err)
		}
		return thinmeta.ReadSuperblock(f)
	}
	if _, err := read(); !errors.Is(err, thinmeta.ErrBlank) {
		t.Errorf("blank: %v", err)
	}
	p, dev := l.pool(t, 512)
	must(t, p.CreateThin(1), p.CreateSnap(2, 1), p.CreateSnap(3, 1), p.SetTransactionID(0, 42))
	info, ref := l.thin(t, spec(dev, 1, 2048))
	data := open(t, info)
	write(t, data, 0, 'x')
	write(t, data, 1, 'x')
	must(t, data.Close(), thinpool.Deactivate(l.Client, ref))
	root, err := p.ReserveMetadataSnap()
	must(t, err)
	must(t, unix.IoctlSetInt(int(f.Fd()), unix.BLKFLSBUF, 0))
	held, err := thinmeta.ReadSuperblockAt(f, root)
	if err != nil || held.TransactionID != 42 || held.Time != 2 || held.MappingRoot == 0 || held.DataSpace != (thinmeta.SpaceMapRoot{}) {
		t.Errorf("metadata snapshot: %+v, %v", held, err)
	}
	must(t, p.ReleaseMetadataSnap(), thinpool.Deactivate(l.Client, p.Ref()))
	s, err := read()
	if err != nil || s.TransactionID != 42 || s.Time != 2 || s.DataBlockSize != uint32(blockSize) || s.NeedsCheck || s.HeldRoot != 0 ||
		s.DataSpace.Blocks != 512 || s.DataSpace.Allocated != 2 || s.MetadataSpace.Blocks != metaBytes/thinmeta.BlockSize {
		t.Errorf("superblock: %+v, %v", s, err)
	}
}
