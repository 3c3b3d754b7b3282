package thinmeta_test

import (
	"encoding/binary"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// deep is a pool with a device whose mappings have three levels, and a snapshot that shares all of them but one path. root is where the device's begin.
func deep(t *testing.T) (im *metagen.Image, root uint64) {
	p := metagen.New(metagen.Options{MetadataBlocks: 8192, DataBlocks: 400_000})
	p.Thin(1)
	p.Write(1, 0, 100_000)
	p.Snap(10, 1)
	p.Write(10, 0, 1)
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
	im, root := deep(t)
	binary.LittleEndian.PutUint64(im.Block(root)[nodeValues:], childOf(im, childOf(im, root, 0), 0))
	im.Seal(root)
	if lost, of := lostBy(t, im, 1); lost > 252 || of < 50_000 {
		t.Errorf("%d of %d that could be read are lost", lost, of)
	}
}

// A node that is wrong at one place, and right at another, is not written over by what the repair needs blocks for.
func TestRepairSparesMisplaced(t *testing.T) {
	im, root := deep(t)
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
