package thinmeta_test

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// small is an image of few blocks, with three levels of trees and with sharing.
func small() *metagen.Image {
	p := metagen.New(metagen.Options{DataBlocks: 20_000, MetadataBlocks: 160})
	p.Thin(1)
	p.Write(1, 0, 600)
	p.Snap(2, 1)
	p.Write(1, 300, 5)
	p.Snap(3, 2)
	p.Snap(4, 2)
	p.Unmap(4, 0, 50)
	p.Thin(9)
	p.Hold()
	p.Write(2, 590, 30)
	return p.Image()
}

// edit changes one field of a block that is in use: which block, where, and to what.
const editSize = 1 + 2 + 8

// applyEdits changes an image and makes the checksums right again, so that what is wrong is met deep inside.
func applyEdits(im *metagen.Image, edits []byte) {
	blocks := im.Find(func(metagen.Info) bool { return true })
	for ; len(edits) >= editSize; edits = edits[editSize:] {
		block := blocks[int(edits[0])%len(blocks)]
		b := im.Block(block)
		at := int(binary.LittleEndian.Uint16(edits[1:])) % (len(b) / 4) * 4
		// An 8th of the edits writes all of the bytes, the others only the low ones: those are close to what is right.
		width := []int{1, 1, 1, 2, 2, 4, 4, 8}[edits[2]>>5]
		copy(b[at:min(at+width, len(b))], edits[3:])
		im.Seal(block)
	}
}

// edit is an edit as bytes.
func edit(block int, at int, value uint64) []byte {
	b := binary.LittleEndian.AppendUint16([]byte{byte(block)}, uint16(at/4|7<<13))
	return binary.LittleEndian.AppendUint64(b, value)
}

func FuzzMetadata(f *testing.F) {
	f.Add([]byte{})
	f.Add(edit(0, 320, 0))
	f.Add(edit(0, 64, 1<<60))
	f.Add(edit(0, 192, 1<<60))
	for block := range 20 {
		f.Add(edit(block, 16, 200))
		f.Add(slices.Concat(edit(block, 32, 0), edit(block, 2048, uint64(block))))
	}
	image := small()
	f.Fuzz(func(t *testing.T, edits []byte) {
		im := image.Clone()
		applyEdits(im, edits)
		for _, root := range []uint64{0, im.Held} {
			m, err := thinmeta.Open(im, thinmeta.Options{Root: root, CacheBytes: 1})
			if err != nil {
				continue
			}
			readAll(t, m, len(im.Bytes)/thinmeta.BlockSize)
		}
	})
}

// readAll reads everything, and wants it to end, to be in order, and to agree with itself.
func readAll(t *testing.T, m *thinmeta.Metadata, blocks int) {
	limit := limit{t, blocks * 256 * 4}
	whole := true
	var ids []uint64
	for d, err := range m.Devices(t.Context()) {
		limit.step()
		if err != nil {
			checkDamage(t, err)
			whole = false
		}
		if d.Root != 0 && len(ids) < 10 {
			ids = append(ids, d.ID)
		}
	}
	u, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range ids {
		mapped, ok := readMappings(t, m, id, limit)
		whole = whole && ok
		if d, found := u.Device(id); ok && (!found || d.Err != nil || d.Mapped != mapped || d.Exclusive > d.Mapped) {
			t.Errorf("device %d has %d blocks, usage %+v", id, mapped, d)
		}
		for _, other := range ids {
			readDiff(t, m, id, other, limit)
		}
	}
	r, err := m.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, err := range r.Damage {
		checkDamage(t, err)
	}
	if r.Err() == nil && (!whole || u.Err != nil) {
		t.Errorf("check finds nothing, and reading fails; usage: %v", u.Err)
	}
	for _, s := range []thinmeta.Space{thinmeta.DataSpace, thinmeta.MetadataSpace} {
		readReferences(t, m, s, limit)
	}
}

// limit bounds how many results there can be.
type limit struct {
	t    *testing.T
	left int
}

func (l *limit) step() {
	if l.left--; l.left < 0 {
		l.t.Fatal("no end")
	}
}

func readMappings(t *testing.T, m *thinmeta.Metadata, id uint64, limit limit) (mapped uint64, ok bool) {
	end := uint64(0)
	ok = true
	for r, err := range m.Mappings(t.Context(), id) {
		limit.step()
		if err != nil {
			checkDamage(t, err)
			ok = false
			continue
		}
		if r.Begin < end || r.Length == 0 {
			t.Fatalf("mapping %+v after block %d", r, end)
		}
		end = r.End()
		mapped += r.Length
	}
	return mapped, ok
}

func readDiff(t *testing.T, m *thinmeta.Metadata, left, right uint64, limit limit) {
	end := uint64(0)
	for d, err := range m.Diff(t.Context(), left, right, thinmeta.DiffOptions{Same: left%2 == 0}) {
		limit.step()
		if err != nil {
			checkDamage(t, err)
			continue
		}
		if d.Begin < end || d.Length == 0 || left == right && d.Change != thinmeta.Same {
			t.Fatalf("difference %+v after block %d", d, end)
		}
		end = d.Begin + d.Length
	}
}

func readReferences(t *testing.T, m *thinmeta.Metadata, s thinmeta.Space, limit limit) {
	end := uint64(0)
	for r, err := range m.References(t.Context(), s) {
		limit.step()
		if errors.Is(err, thinmeta.ErrNoSpaceMap) {
			return
		}
		if err != nil {
			checkDamage(t, err)
			continue
		}
		if r.Begin < end || r.Length == 0 || r.Count == 0 {
			t.Fatalf("references %+v after block %d", r, end)
		}
		end = r.Begin + r.Length
	}
}
