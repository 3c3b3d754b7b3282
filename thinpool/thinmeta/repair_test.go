package thinmeta_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

func devicesOf(t *testing.T, m *thinmeta.Metadata) (devices []thinmeta.Device) {
	t.Helper()
	for d, err := range m.Devices(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		d.Root = 0 // may be elsewhere
		devices = append(devices, d)
	}
	return devices
}

// repairImage repairs an image and wants the result to be in order.
func repairImage(t *testing.T, im *metagen.Image) (thinmeta.Repaired, *thinmeta.Metadata) {
	t.Helper()
	r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{DataBlocks: 100_000, MetadataBlocks: uint64(len(im.Bytes)) / thinmeta.BlockSize})
	if err != nil {
		t.Fatal(err)
	}
	return r, inOrder(t, im)
}

func inOrder(t *testing.T, im *metagen.Image) *thinmeta.Metadata {
	t.Helper()
	m := openImage(t, im, thinmeta.Options{})
	if r := check(t, im); len(r.Damage)+len(r.Leaks)+len(r.Stale) > 0 {
		t.Fatalf("after the repair: %v, %v, %v", r.Damage, r.Leaks, r.Stale)
	}
	if s := m.Superblock(); s.NeedsCheck || s.HeldRoot != 0 {
		t.Errorf("superblock %+v", s)
	}
	return m
}

// keyed is a block at its place.
type keyed struct {
	key uint64
	block
}

// readable returns what can be read of each device, block by block.
func readable(t *testing.T, im *metagen.Image) map[uint64][]keyed {
	t.Helper()
	m := openImage(t, im, thinmeta.Options{})
	found := map[uint64][]keyed{}
	for d, err := range m.Devices(t.Context()) {
		if d.Root == 0 || err != nil && !errors.Is(err, thinmeta.ErrMismatch) {
			continue
		}
		blocks := []keyed{}
		for run, err := range m.Mappings(t.Context(), d.ID) {
			for i := range run.Length {
				if err == nil {
					blocks = append(blocks, keyed{run.Begin + i, block{run.Data + i, d.MayShare(run)}})
				}
			}
		}
		found[d.ID] = blocks
	}
	return found
}

// A repair of sound metadata changes nothing that anybody can see, and one of metadata with a metadata snapshot drops that.
func TestRepairSound(t *testing.T) {
	for seed := range uint64(20) {
		p := aged(seed)
		p.NeedsCheck = seed%2 == 0
		if seed%3 == 0 {
			p.Hold()
		}
		im := p.Image()
		before := devicesOf(t, openImage(t, im, thinmeta.Options{}))
		blocks := readable(t, im)
		super := openImage(t, im, thinmeta.Options{}).Superblock()
		r, m := repairImage(t, im)
		after, same := devicesOf(t, m), readable(t, im)
		if r.Err != nil || len(after) != len(before) || len(r.Devices) != len(before) {
			t.Fatalf("seed %d: %v, %d devices, before %d", seed, r.Err, len(after), len(before))
		}
		for i, d := range after {
			if d != before[i] {
				t.Errorf("seed %d: device %+v, before %+v", seed, d, before[i])
			}
			if !slices.Equal(blocks[d.ID], same[d.ID]) {
				t.Errorf("seed %d: device %d has other blocks", seed, d.ID)
			}
			if x := r.Devices[i]; x.ID != d.ID || x.Mapped != d.MappedBlocks || x.Gone || x.Remade || len(x.Lost) > 0 {
				t.Errorf("seed %d: said %+v of %+v", seed, x, d)
			}
		}
		s := m.Superblock()
		if s.TransactionID != super.TransactionID || s.Time != super.Time || s.DataSpace.Allocated > super.DataSpace.Allocated ||
			s.MetadataSpace.Allocated > super.MetadataSpace.Allocated {
			t.Errorf("seed %d: superblock %+v, before %+v", seed, s, super)
		}
	}
}

// Each way to damage metadata: all that can be read before is there after the repair, at the same places, and thin_check wants no
// more. Where nothing can be read, that is the error.
func TestRepairEveryDamage(t *testing.T) {
	forEachDamage(t, 1, func(t *testing.T, _ metagen.Damage, im *metagen.Image) {
		m, err := thinmeta.Open(im, thinmeta.Options{})
		if err != nil { // no superblock: refused, and nothing written
			was := bytes.Clone(im.Bytes)
			if _, rerr := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{}); rerr == nil || rerr.Error() != err.Error() || !bytes.Equal(im.Bytes, was) {
				t.Errorf("repaired without a superblock: %v, want %v", rerr, err)
			}
			return
		}
		before := readable(t, im)
		short := len(im.Bytes)%thinmeta.BlockSize != 0
		if short {
			im.Bytes = im.Bytes[:len(im.Bytes)/thinmeta.BlockSize*thinmeta.BlockSize]
		}
		r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{DataBlocks: 100_000, MetadataBlocks: uint64(len(im.Bytes)) / thinmeta.BlockSize})
		if len(before) == 0 && errors.Is(err, thinmeta.ErrDamaged) {
			return
		}
		if err != nil {
			t.Fatalf("%d devices can be read: %v", len(before), err)
		}
		inOrder(t, im)
		after := readable(t, im)
		for id, blocks := range before {
			i := 0
			for _, b := range blocks {
				if b.data >= 100_000 {
					continue // what cannot be
				}
				if i >= len(after[id]) || after[id][i].key != b.key || after[id][i].data != b.data || b.shared && !after[id][i].shared {
					t.Fatalf("device %d, block %d: not %+v any more; said %v", id, b.key, b.block, r.Err)
				}
				i++
			}
		}
		if s, _ := thinmeta.ReadSuperblock(im); s.TransactionID != m.Superblock().TransactionID {
			t.Errorf("transaction %d, before %d", s.TransactionID, m.Superblock().TransactionID)
		}
	})
}

// TestRepairedIsAccepted has thin_check look at what becomes of each kind of damage.
func TestRepairedIsAccepted(t *testing.T) {
	thintools.Need(t)
	forEachDamage(t, 1, func(t *testing.T, _ metagen.Damage, im *metagen.Image) {
		if len(im.Bytes)%thinmeta.BlockSize != 0 {
			im.Bytes = append(im.Bytes, make([]byte, thinmeta.BlockSize-len(im.Bytes)%thinmeta.BlockSize)...)
		}
		_, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{DataBlocks: 100_000, MetadataBlocks: uint64(len(im.Bytes)) / thinmeta.BlockSize})
		if err != nil {
			return // that nothing could be read is another test's
		}
		if ok, said := thintools.Check(t, thintools.Save(t, im.Bytes)); !ok {
			t.Error(said)
		}
	})
}

// snapshotted is a pool as one that has been in use: many snapshots of one device, some written to.
func snapshotted(snapshots uint64, o metagen.Options) *metagen.Pool {
	p := metagen.New(o)
	p.TransactionID = 5
	p.Thin(1)
	p.Write(1, 0, 700)
	for i := range snapshots {
		p.Snap(10+i, 1)
		if i%10 == 0 {
			p.Write(10+i, i, 1)
		}
	}
	p.Thin(5)
	p.Write(5, 0, 700)
	return p
}

// What devices share stays shared: a repair needs no more room than there was.
func TestRepairKeepsSharing(t *testing.T) {
	p := snapshotted(450, metagen.Options{MetadataBlocks: 1024})
	im := p.Image()
	garble(im, im.Find(leafOfDevice(t, im, 5))[1])
	r, m := repairImage(t, im)
	if r.Err == nil {
		t.Error("nothing is lost")
	}
	for _, d := range r.Devices {
		if lost := len(d.Lost) > 0; lost != (d.ID == 5) || d.Gone || d.Remade {
			t.Errorf("device %+v", d)
		}
	}
	if was, is := uint64(len(im.Blocks)), m.Superblock().MetadataSpace.Allocated; is > was {
		t.Errorf("%d blocks of metadata in use, before %d", is, was)
	}
}

// A leaf that all share is lost for all of them, once.
func TestRepairSharedLeaf(t *testing.T) {
	im := snapshotted(450, metagen.Options{MetadataBlocks: 1024}).Image()
	garble(im, im.Find(leafOfDevice(t, im, 1))[2])
	r, m := repairImage(t, im)
	n := 0
	for _, d := range r.Devices {
		n += len(d.Lost)
		if d.ID != 5 && (len(d.Lost) != 1 || d.Lost[0].Last-d.Lost[0].First < 100 || d.Mapped > 600) {
			t.Errorf("device %+v", d)
		}
	}
	if n != 451 {
		t.Errorf("%d ranges are lost", n)
	}
	if was, is := uint64(len(im.Blocks)), m.Superblock().MetadataSpace.Allocated; is >= was {
		t.Errorf("%d blocks of metadata in use, before %d", is, was)
	}
}

func garble(im *metagen.Image, block uint64) {
	b := im.Block(block)
	for i := range b {
		b[i] ^= 0x5a
	}
}

// leafOfDevice finds the leaves of a device.
func leafOfDevice(t *testing.T, im *metagen.Image, id uint64) func(metagen.Info) bool {
	t.Helper()
	d, err := openImage(t, im, thinmeta.Options{}).Device(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	b := im.Block(d.Root)
	leaves := map[uint64]bool{}
	for i := range binary.LittleEndian.Uint32(b[16:]) {
		leaves[binary.LittleEndian.Uint64(b[32+8*252+8*i:])] = true
	}
	found := im.Find(func(metagen.Info) bool { return true })
	i := -1
	return func(metagen.Info) bool { i++; return leaves[found[i]] }
}

// Without the details of the devices, each keeps what it has, and the kernel holds it for shared.
func TestRepairDetails(t *testing.T) {
	im := snapshotted(120, metagen.Options{MetadataBlocks: 1024}).Image()
	before := devicesOf(t, openImage(t, im, thinmeta.Options{}))
	for _, b := range im.Find(func(i metagen.Info) bool { return i.Tree == "details" }) {
		garble(im, b)
	}
	r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{Made: map[uint64]uint64{1: 0xfeed}})
	if err != nil {
		t.Fatal(err)
	}
	m := inOrder(t, im)
	after := devicesOf(t, m)
	if len(after) != len(before) {
		t.Fatalf("%d devices, before %d", len(after), len(before))
	}
	for i, d := range after {
		if !r.Devices[i].Remade || d.MappedBlocks != before[i].MappedBlocks || d.SnapshotTime != m.Superblock().Time || d.SnapshotTime < before[i].SnapshotTime ||
			(d.TransactionID == 0xfeed) != (d.ID == 1) {
			t.Errorf("device %+v, before %+v: %+v", d, before[i], r.Devices[i])
		}
	}
}

// A damaged block deep in a large tree leaves nodes that are too small: they are put together with their neighbours, and who shares
// them has them as they were.
func TestRepairBalances(t *testing.T) {
	for seed := range uint64(4) {
		rnd := rand.New(rand.NewPCG(seed, 3))
		p := metagen.New(metagen.Options{MetadataBlocks: 8192, DataBlocks: 400_000})
		p.Thin(1)
		p.Write(1, 0, 150_000)
		for i := range uint64(6) {
			p.Snap(10+i, 1)
			p.Write(10+i, i*20_000, 1)
		}
		im := p.Image()
		leaves := im.Find(func(i metagen.Info) bool { return i.Tree == "mappings" && i.Level == 0 && !i.Root })
		for range 50 + rnd.IntN(500) {
			block := leaves[rnd.IntN(len(leaves))]
			if rnd.IntN(4) > 0 {
				garble(im, block)
				continue
			}
			b := im.Block(block) // right in itself, and too small
			binary.LittleEndian.PutUint32(b[16:], 1+rnd.Uint32N(60))
			im.Seal(block)
		}
		before := readable(t, im)
		repairImage(t, im)
		after := readable(t, im)
		for id := range before {
			if !slices.Equal(before[id], after[id]) {
				t.Errorf("seed %d: device %d has %d blocks, %d could be read", seed, id, len(after[id]), len(before[id]))
			}
		}
	}
}

// What cannot be repaired, and why.
func TestRepairRefuses(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx    context.Context
		damage func(im *metagen.Image)
		want   error
	}{
		"cancelled": {ctx: cancelled, want: context.Canceled},
		"blank":     {damage: func(im *metagen.Image) { clear(im.Block(0)) }, want: thinmeta.ErrBlank},
		"no devices": {damage: func(im *metagen.Image) {
			garble(im, im.Find(func(i metagen.Info) bool { return i.Tree == "devices" })[0])
		}, want: thinmeta.ErrDamaged},
		"no room": {damage: func(im *metagen.Image) {
			binary.LittleEndian.PutUint64(im.Block(0)[64:], 1<<40)
			im.Seal(0)
		}, want: thinmeta.ErrNoRoom},
	} {
		t.Run(name, func(t *testing.T) {
			im := snapshotted(5, metagen.Options{}).Image()
			if tc.damage != nil {
				tc.damage(im)
			}
			if tc.ctx == nil {
				tc.ctx = t.Context()
			}
			if _, err := thinmeta.Repair(tc.ctx, storage{im}, thinmeta.RepairOptions{}); !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
		})
	}
}

// A write that fails is the error, wherever that is, and the superblock is written last.
func TestRepairCannotWrite(t *testing.T) {
	image := snapshotted(5, metagen.Options{}).Image()
	before := slices.Clone(image.Block(0))
	for n := 0; ; n++ {
		im := image.Clone()
		left := n
		_, err := thinmeta.Repair(t.Context(), failing{storage{im}, &left}, thinmeta.RepairOptions{})
		if err == nil {
			break
		}
		if !errors.Is(err, errWrite) || !slices.Equal(before, im.Block(0)) {
			t.Fatalf("%d writes: %v", n, err)
		}
	}
}

// FuzzRepair repairs metadata with anything in it: what comes out is in order.
func FuzzRepair(f *testing.F) {
	f.Add([]byte{})
	f.Add(edit(0, 320, 0))
	f.Add(edit(0, 64, 1<<60))
	for block := range 20 {
		f.Add(edit(block, 16, 200))
		f.Add(slices.Concat(edit(block, 32, 0), edit(block, 2048, uint64(block))))
	}
	image := small()
	f.Fuzz(func(t *testing.T, edits []byte) {
		im := image.Clone()
		applyEdits(im, edits)
		before := 0
		if _, err := thinmeta.Open(im, thinmeta.Options{}); err == nil {
			for d, err := range openImage(t, im, thinmeta.Options{}).Devices(t.Context()) { // those whose mappings have to be found first, too
				if err == nil || d != (thinmeta.Device{}) {
					before++
				}
			}
		}
		r, err := thinmeta.Repair(t.Context(), storage{im}, thinmeta.RepairOptions{DataBlocks: 20_000, MetadataBlocks: 160})
		if err != nil {
			return // nothing could be read
		}
		inOrder(t, im)
		if kept := len(readable(t, im)); kept > before {
			t.Errorf("%d devices, before %d: %+v", kept, before, r)
		}
	})
}
