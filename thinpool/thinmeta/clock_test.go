package thinmeta_test

import (
	"encoding/binary"
	"errors"
	"iter"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// A pool's time that is behind that of its mappings lets the kernel write into what is shared. Check finds it, and after Repair no mapping is of a later time.
func TestClockBehind(t *testing.T) {
	const time = 44 // in the superblock
	check := func(im *metagen.Image) error {
		m, err := thinmeta.Open(im, thinmeta.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.Check(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r.Err()
	}
	for _, less := range []uint32{18, 1} {
		im := clocked()
		if err := check(im); err != nil {
			t.Fatal(err)
		}
		right := binary.LittleEndian.Uint32(im.Block(0)[time:])
		wrong := right - less
		binary.LittleEndian.PutUint32(im.Block(0)[time:], wrong)
		im.Seal(0)
		if err := check(im); !errors.Is(err, thinmeta.ErrMismatch) {
			t.Errorf("time %d of %d: %v", wrong, right, err)
		}
		r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{})
		if err != nil {
			t.Fatal(err)
		}
		// What is later than the pool counts as shared, which is safe. The pool's time is not that of whatever says that it is later.
		if r.Super.Time != max(wrong, 1) || r.Err != nil {
			t.Errorf("repaired: time %d, lost %v", r.Super.Time, r.Err)
		}
		if err := check(im); err != nil {
			t.Error(err)
		}
		for d, err := range devices(t, im) {
			if err != nil || d.SnapshotTime < 1 {
				t.Errorf("%+v, %v", d, err)
			}
		}
	}
}

// clocked is a pool at time 18.
func clocked() *metagen.Image {
	p := metagen.New(metagen.Options{MetadataBlocks: 1024, DataBlocks: 100000})
	p.Thin(1)
	p.Write(1, 0, 500)
	for i := uint64(2); i < 20; i++ {
		p.Snap(i, 1)
		p.Write(i, 0, 3)
	}
	return p.Image()
}

func devices(t *testing.T, im *metagen.Image) iter.Seq2[thinmeta.Device, error] {
	t.Helper()
	m, err := thinmeta.Open(im, thinmeta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return m.Devices(t.Context())
}

// A time in the details that nothing can have is none that the pool takes over: after the next snapshot nothing would count as shared any more.
func TestClockForged(t *testing.T) {
	p := metagen.New(metagen.Options{MetadataBlocks: 1024, DataBlocks: 100000})
	p.Thin(1)
	p.Write(1, 0, 500)
	p.Snap(2, 1)
	im := p.Image()
	before := binary.LittleEndian.Uint32(im.Block(0)[44:])
	leaf := im.Find(func(i metagen.Info) bool { return i.Tree == "details" && i.Level == 0 })[0]
	block := im.Block(leaf)
	room := binary.LittleEndian.Uint32(block[20:])
	binary.LittleEndian.PutUint32(block[32+8*room+16:], 1<<32-1) // creation time of the first
	im.Seal(leaf)
	m, err := thinmeta.Open(im, thinmeta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := m.Check(t.Context()); err != nil || !errors.Is(r.Err(), thinmeta.ErrMismatch) {
		t.Errorf("not found: %v, %v", r.Err(), err)
	}
	r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{})
	if err != nil || r.Super.Time != before {
		t.Errorf("repaired: time %d of %d, %v", r.Super.Time, before, err)
	}
}

// What two devices have, and each takes for its own, is shared after a repair: neither writes over the other's.
func TestRepairTwiceMapped(t *testing.T) {
	p := metagen.New(metagen.Options{MetadataBlocks: 1024, DataBlocks: 100000})
	p.Thin(1)
	p.Write(1, 0, 10)
	p.Thin(2)
	p.Write(2, 0, 10)
	im := p.Image()
	leaves := im.Find(func(i metagen.Info) bool { return i.Tree == "mappings" && i.Level == 0 })
	room := binary.LittleEndian.Uint32(im.Block(leaves[0])[20:])
	at := 32 + 8*room
	copy(im.Block(leaves[1])[at:at+8], im.Block(leaves[0])[at:at+8])
	im.Seal(leaves[1])
	r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{})
	if err != nil || !errors.Is(r.Err, thinmeta.ErrMismatch) {
		t.Errorf("repaired: %v, %v", r.Err, err)
	}
	m, err := thinmeta.Open(im, thinmeta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for d, err := range devices(t, im) {
		if err != nil {
			t.Fatal(err)
		}
		for mapping, err := range m.Mappings(t.Context(), d.ID) {
			if err != nil {
				t.Fatal(err)
			}
			if shared := mapping.Begin == 0; d.MayShare(mapping) != shared {
				t.Errorf("device %d: %+v counts as shared: %t", d.ID, mapping, !shared)
			}
			break
		}
	}
}

// The last bitmap says that blocks beyond the device's end are free, as the kernel has it: else a pool that grows does not use what it gets.
func TestRepairedCanGrow(t *testing.T) {
	p := metagen.New(metagen.Options{MetadataBlocks: 1024, DataBlocks: 100})
	p.Thin(1)
	p.Write(1, 0, 100)
	im := p.Image()
	if _, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{}); err != nil {
		t.Fatal(err)
	}
	// The root of the index is a leaf here; its first value is of the only bitmap: the block and how many are free.
	root := binary.LittleEndian.Uint64(im.Block(0)[64+16:])
	block := im.Block(root)
	at := 32 + 8*binary.LittleEndian.Uint32(block[20:])
	if free, want := binary.LittleEndian.Uint32(block[at+8:]), uint32(16320-100); free != want {
		t.Errorf("%d free, want %d", free, want)
	}
}
