package thinmeta_test

import (
	"bytes"
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

func isHead(i metagen.Info) bool {
	return i.Kind == metagen.Superblock || i.Tree == "devices" || i.Tree == "details"
}

// Whatever of the blocks that lead to the devices is lost comes back from the copy, byte for byte.
func TestRestoreHead(t *testing.T) {
	im := snapshotted(450, metagen.Options{MetadataBlocks: 1024}).Image()
	copied, err := openImage(t, im, thinmeta.Options{}).Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	blocks := im.Find(isHead)
	if len(blocks) < 6 || len(copied) != len(blocks)*thinmeta.BlockSize {
		t.Fatalf("%d bytes of %d blocks", len(copied), len(blocks))
	}
	for i := range blocks {
		for _, lost := range [][]uint64{blocks[i : i+1], blocks} {
			damaged := im.Clone()
			for _, b := range lost {
				garble(damaged, b)
			}
			if n, err := thinmeta.RestoreHead(storage{damaged}, copied); n != len(lost) || err != nil || !bytes.Equal(damaged.Bytes, im.Bytes) {
				t.Errorf("blocks %d: %d restored, %v", lost, n, err)
			}
		}
	}
	// A copy that is cut off is good for what there is, and damage to it does none.
	damaged := im.Clone()
	for _, b := range blocks {
		garble(damaged, b)
	}
	if n, err := thinmeta.RestoreHead(storage{damaged}, copied[:3*thinmeta.BlockSize+100]); n != 3 || err != nil {
		t.Errorf("%d restored, %v", n, err)
	}
	for i := range copied {
		if i%509 != 0 {
			continue
		}
		bad, again := bytes.Clone(copied), im.Clone()
		bad[i] ^= 1
		if _, err := thinmeta.RestoreHead(storage{again}, bad); !bytes.Equal(again.Bytes, im.Bytes) {
			t.Fatalf("byte %d: the metadata is not what it was: %v", i, err)
		}
	}
}

// A copy of another moment is refused, and nothing written; the kernel's mark alone makes no other.
func TestRestoreHeadOfAnotherMoment(t *testing.T) {
	p := snapshotted(20, metagen.Options{MetadataBlocks: 1024})
	copied, err := openImage(t, p.Image(), thinmeta.Options{}).Head(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	p.NeedsCheck = true
	if n, err := thinmeta.RestoreHead(storage{p.Image()}, copied); n != 0 || err != nil {
		t.Errorf("the same with a mark: %d, %v", n, err)
	}
	p.Snap(900, 1)
	im := p.Image()
	was := bytes.Clone(im.Bytes)
	if _, err := thinmeta.RestoreHead(storage{im}, copied); !errors.Is(err, thinmeta.ErrMismatch) || !bytes.Equal(was, im.Bytes) {
		t.Errorf("an old copy: %v", err)
	}
	if _, err := thinmeta.RestoreHead(storage{im}, make([]byte, thinmeta.BlockSize)); !errors.Is(err, thinmeta.ErrBlank) {
		t.Errorf("a blank copy: %v", err)
	}
}
