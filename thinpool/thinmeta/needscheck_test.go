package thinmeta_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// A UUID is all that changes, and takes nothing from what the metadata says; what is no superblock is left as it is.
func TestSetUUID(t *testing.T) {
	im := snapshotted(3, metagen.Options{}).Image()
	before, err := thinmeta.ReadSuperblock(im)
	if err != nil {
		t.Fatal(err)
	}
	want := im.Clone()
	before.UUID = [16]byte{1, 15: 16}
	if err := thinmeta.SetUUID(storage{im}, before.UUID); err != nil {
		t.Fatal(err)
	}
	if after, err := thinmeta.ReadSuperblock(im); err != nil || after != before {
		t.Errorf("got %+v, %v, want %+v", after, err, before)
	}
	copy(want.Block(0)[16:32], before.UUID[:])
	want.Seal(0)
	if !bytes.Equal(want.Bytes, im.Bytes) {
		t.Error("more than the UUID has changed")
	}
	garble(im, 0)
	want = im.Clone()
	if err := thinmeta.SetUUID(storage{im}, [16]byte{2}); !errors.Is(err, thinmeta.ErrNotThin) && !errors.Is(err, thinmeta.ErrChecksum) || !bytes.Equal(want.Bytes, im.Bytes) {
		t.Errorf("a garbled superblock: %v", err)
	}
}
