package thinmeta_test

import (
	"encoding/binary"
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// crowded is a pool whose metadata is nearly full of snapshots. They share a leaf that is damaged so that it is too small; each has the leaf behind that
// for itself, or, as twins, with one other.
func crowded(t *testing.T, snapshots uint64, twins bool) *metagen.Image {
	t.Helper()
	p := metagen.New(metagen.Options{MetadataBlocks: 512})
	p.Thin(1)
	p.Write(1, 0, 700)
	for i := range snapshots {
		p.Snap(10+2*i, 1)
		p.Write(10+2*i, 300, 1)
		if twins {
			p.Snap(11+2*i, 10+2*i)
			p.Write(11+2*i, 650, 1)
		}
	}
	im := p.Image()
	leaf := im.Find(leafOfDevice(t, im, 1))[0]
	binary.LittleEndian.PutUint32(im.Block(leaf)[16:], 5)
	im.Seal(leaf)
	return im
}

// What nobody else has gives its room to what it is put together with.
func TestRepairInPlace(t *testing.T) {
	im := crowded(t, 240, false)
	r, m := repairImage(t, im)
	if s := m.Superblock().MetadataSpace; len(r.Devices) != 241 || s.Blocks != 512 || s.Allocated < 450 {
		t.Errorf("%d devices, %+v", len(r.Devices), s)
	}
	accepted(t, im)
}

// What does not fit, fits where the metadata can be made larger.
func TestRepairNoRoom(t *testing.T) {
	im := crowded(t, 110, true)
	full := im.Clone()
	if _, err := thinmeta.Repair(t.Context(), storage{full}, thinmeta.RepairOptions{MetadataBlocks: 512}); !errors.Is(err, thinmeta.ErrNoRoom) {
		t.Fatalf("got %v; there is too much room for the test", err)
	}
	im.Bytes = append(im.Bytes, make([]byte, 256*thinmeta.BlockSize)...)
	before := readable(t, im)
	if _, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{MetadataBlocks: 768, MoreMetadata: true}); err != nil {
		t.Fatal(err)
	}
	if s := inOrder(t, im).Superblock().MetadataSpace; s.Blocks != 768 {
		t.Errorf("%+v", s)
	}
	after := readable(t, im)
	for id := range before {
		if len(after[id]) != len(before[id]) || len(before[id]) < 400 {
			t.Errorf("device %d has %d blocks, %d could be read", id, len(after[id]), len(before[id]))
		}
	}
	accepted(t, im)
}

// accepted has thin_check look at an image, where there is one.
func accepted(t *testing.T, im *metagen.Image) {
	t.Helper()
	thintools.Need(t)
	if ok, said := thintools.Check(t, thintools.Save(t, im.Bytes)); !ok {
		t.Error(said)
	}
}
