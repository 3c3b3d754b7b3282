package thinmeta_test

import (
	"encoding/binary"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// deep is a pool with a device whose mappings have three levels, and a snapshot that shares all of them but the path to a block that was written. root is
// where the device's begin.
func deep(t *testing.T, written uint64) (im *metagen.Image, root uint64) {
	p := metagen.New(metagen.Options{MetadataBlocks: 8192, DataBlocks: 400_000})
	p.Thin(1)
	p.Write(1, 0, 100_000)
	p.Snap(10, 1)
	p.Write(10, written, 1)
	im = p.Image()
	d, err := openImage(t, im, thinmeta.Options{}).Device(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return im, d.Root
}

// Nodes of mappings have room for 252 keys and as many values behind a header of 32 bytes.
const (
	nodeKeys   = 32
	nodeValues = nodeKeys + 8*252
)

func childOf(im *metagen.Image, block uint64, i int) uint64 {
	return binary.LittleEndian.Uint64(im.Block(block)[nodeValues+8*i:])
}

// lostBy repairs, and returns how much of what could be read of a device is not there any more.
func lostBy(t *testing.T, im *metagen.Image, id uint64) (lost, of int) {
	t.Helper()
	before := readable(t, im)[id]
	if _, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{}); err != nil {
		t.Fatal(err)
	}
	after := map[uint64]uint64{}
	for _, k := range readable(t, im)[id] {
		after[k.key] = k.block.data
	}
	for _, k := range before {
		if data, ok := after[k.key]; !ok || data != k.block.data {
			lost++
		}
	}
	return lost, len(before)
}

// A leaf where a node of another level belongs takes nothing with it but itself.
func TestRepairOtherLevel(t *testing.T) {
	im, root := deep(t, 0)
	binary.LittleEndian.PutUint64(im.Block(root)[nodeValues:], childOf(im, childOf(im, root, 0), 0))
	im.Seal(root)
	if lost, of := lostBy(t, im, 1); lost > 252 || of < 50_000 {
		t.Errorf("%d of %d that could be read are lost", lost, of)
	}
}

// A node that is wrong at one place, and right at another, is not written over by what the repair needs blocks for.
func TestRepairSparesMisplaced(t *testing.T) {
	im, root := deep(t, 0)
	second := im.Block(root)[nodeKeys+8:] // the key of the root's second child, which is wrong in this device alone
	binary.LittleEndian.PutUint64(second, binary.LittleEndian.Uint64(second)+50)
	im.Seal(root)
	leaf := childOf(im, childOf(im, root, 0), 3)
	binary.LittleEndian.PutUint32(im.Block(leaf)[16:], 5) // too small: it is put together with another one
	im.Seal(leaf)
	if lost, of := lostBy(t, im, 10); lost > 0 || of < 90_000 {
		t.Errorf("%d of %d that could be read are lost", lost, of)
	}
}

// One parent that says too little of the keys below a node which others have as well takes nothing from them, and loses itself only what does not fit.
func TestRepairMisstated(t *testing.T) {
	for _, less := range []uint64{1, 50, 150, 2000} {
		damaged := func() *metagen.Image {
			im, root := deep(t, 99_999)
			second := im.Block(root)[nodeKeys+8:]
			binary.LittleEndian.PutUint64(second, binary.LittleEndian.Uint64(second)-less)
			im.Seal(root)
			return im
		}
		if lost, of := lostBy(t, damaged(), 10); lost > 0 || of < 90_000 {
			t.Errorf("%d less: the other has lost %d of %d", less, lost, of)
		}
		im := damaged()
		if lost, of := lostBy(t, im, 1); lost > int(less)+252 || of < 45_000 {
			t.Errorf("%d less: %d of %d are lost", less, lost, of)
		}
		inOrder(t, im)
	}
}

// What a device has lost is not said of others that share what is left to it, and of nobody more than its part.
func TestRepairNamesLostOnce(t *testing.T) {
	p := metagen.New(metagen.Options{})
	p.Thin(1)
	p.Write(1, 0, 400)
	p.Snap(10, 1)
	p.Write(10, 390, 1) // the last leaf is its own
	im := p.Image()
	root := func(id uint64) uint64 {
		d, err := openImage(t, im, thinmeta.Options{}).Device(t.Context(), id)
		if err != nil {
			t.Fatal(err)
		}
		return d.Root
	}
	if n := binary.LittleEndian.Uint32(im.Block(root(1))[16:]); n != 2 {
		t.Fatalf("%d leaves", n)
	}
	garble(im, childOf(im, root(1), 1))
	r, _ := repairImage(t, im)
	for _, d := range r.Devices {
		if has := len(d.Lost) > 0; has != (d.ID == 1) {
			t.Errorf("device %+v", d)
		}
	}
}
