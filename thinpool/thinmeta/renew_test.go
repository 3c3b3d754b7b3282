package thinmeta_test

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// storage is an image that can be written to.
type storage struct{ *metagen.Image }

func (s storage) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > int64(len(s.Bytes)) {
		return 0, io.ErrShortWrite
	}
	return copy(s.Bytes[off:], b), nil
}

// block is where a block of a device lies, and whether the kernel holds it for shared.
type block struct {
	data   uint64
	shared bool
}

func sharedBlocks(t *testing.T, m *thinmeta.Metadata) (devices []thinmeta.Device, maps []map[uint64]block) {
	t.Helper()
	for d, err := range m.Devices(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		blocks := map[uint64]block{}
		for run, err := range m.Mappings(t.Context(), d.ID) {
			if err != nil {
				t.Fatal(err)
			}
			for i := range run.Length {
				blocks[run.Begin+i] = block{run.Data + i, d.MayShare(run)}
			}
		}
		devices, maps = append(devices, d), append(maps, blocks)
	}
	return devices, maps
}

// aged makes a pool that has taken many snapshots and deleted most.
func aged(seed uint64) *metagen.Pool {
	r := rand.New(rand.NewPCG(seed, 7))
	p := metagen.New(metagen.Options{Seed: seed, DataBlocks: 200_000, MetadataBlocks: 8192})
	p.Time, p.TransactionID = 16_000_000+r.Uint32N(700_000), seed
	p.Thin(0)
	next := 15_000_000 + r.Uint64N(1_000_000)
	for range 60 + r.IntN(200) {
		ids := p.IDs()
		id := ids[r.IntN(len(ids))]
		switch n := r.IntN(12); {
		case n == 0:
			p.Thin(next)
			next += 1 + r.Uint64N(1000)
		case n < 5:
			p.Snap(next, id)
			p.Time += r.Uint32N(3)
			next++
		case n == 5 && id != 0:
			p.Delete(id)
		case n == 6:
			p.Unmap(id, r.Uint64N(3000), 1+r.Uint64N(400))
		default:
			p.Write(id, r.Uint64N(3000), 1+r.Uint64N(200))
		}
	}
	return p
}

// Renewed metadata has the same devices with the same blocks, held for shared as before, under small ids and times.
func TestRenew(t *testing.T) {
	for seed := range uint64(20) {
		p := aged(seed)
		im := p.Image()
		before, blocks := sharedBlocks(t, openImage(t, im, thinmeta.Options{}))
		// Some ids are named and have no device.
		ids := p.IDs()
		ids = append(ids, ids[len(ids)-1]+5)
		if ids[1] > 1 {
			ids = slices.Insert(ids, 1, 1)
		}
		super, err := thinmeta.Renew(t.Context(), storage{im}, thinmeta.Renewal{IDs: ids, TransactionID: 0xfeed})
		if err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if super.TransactionID != 0xfeed || super.Time > uint32(len(before)) {
			t.Errorf("seed %d: time %d, transaction %#x, %d devices", seed, super.Time, super.TransactionID, len(before))
		}
		m := openImage(t, im, thinmeta.Options{})
		if r, err := m.Check(t.Context()); err != nil || r.Err() != nil || len(r.Leaks)+len(r.Stale) > 0 {
			t.Fatalf("seed %d: %v, %+v", seed, err, r)
		}
		after, same := sharedBlocks(t, m)
		if len(after) != len(before) {
			t.Fatalf("seed %d: %d devices, before %d", seed, len(after), len(before))
		}
		for i, d := range after {
			if want := slices.Index(ids, before[i].ID); d.ID != uint64(want) || d.MappedBlocks != before[i].MappedBlocks || d.TransactionID != super.TransactionID {
				t.Errorf("seed %d: device %+v, before %+v, want id %d", seed, d, before[i], want)
			}
			if d.SnapshotTime > super.Time || d.CreationTime > d.SnapshotTime {
				t.Errorf("seed %d: device %+v at time %d", seed, d, super.Time)
			}
			for at, b := range blocks[i] {
				if same[i][at] != b {
					t.Fatalf("seed %d: device %d, block %d: %+v, before %+v", seed, d.ID, at, same[i][at], b)
				}
			}
			if len(same[i]) != len(blocks[i]) {
				t.Errorf("seed %d: device %d has %d blocks, before %d", seed, d.ID, len(same[i]), len(blocks[i]))
			}
			if _, err := m.Device(t.Context(), d.ID); err != nil { // found by its key
				t.Errorf("seed %d: %v", seed, err)
			}
		}
	}
}

// What cannot be renewed is not touched.
func TestRenewRefuses(t *testing.T) {
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	for name, tc := range map[string]struct {
		ctx    context.Context
		change func(p *metagen.Pool)
		damage func(im *metagen.Image)
		ids    func(ids []uint64) []uint64
		want   error
	}{
		"metadata snapshot": {change: (*metagen.Pool).Hold, want: thinmeta.ErrHeld},
		"beyond the end":    {change: func(p *metagen.Pool) { p.Time = 1 << 24 }, want: thinmeta.ErrSpent},
		"unknown device":    {ids: func(ids []uint64) []uint64 { return ids[1:] }, want: thinmeta.ErrNoDevice},
		"cancelled":         {ctx: cancelled, want: context.Canceled},
		"damaged": {damage: func(im *metagen.Image) {
			leaves := im.Find(func(i metagen.Info) bool { return i.Tree == "mappings" && i.Level == 0 })
			im.Block(leaves[0])[100] ^= 1
		}, want: thinmeta.ErrDamaged},
		"blank": {damage: func(im *metagen.Image) { clear(im.Block(0)) }, want: thinmeta.ErrBlank},
	} {
		t.Run(name, func(t *testing.T) {
			p := aged(3)
			ids := p.IDs()
			if tc.change != nil {
				tc.change(p)
			}
			im := p.Image()
			if tc.damage != nil {
				tc.damage(im)
			}
			if tc.ids != nil {
				ids = tc.ids(ids)
			}
			if tc.ctx == nil {
				tc.ctx = t.Context()
			}
			before := slices.Clone(im.Bytes)
			_, err := thinmeta.Renew(tc.ctx, storage{im}, thinmeta.Renewal{IDs: ids})
			if !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if !slices.Equal(before, im.Bytes) {
				t.Error("it was changed")
			}
		})
	}
}

// failing is storage that fails at a write.
type failing struct {
	storage
	left *int
}

var errWrite = errors.New("cannot write")

func (f failing) WriteAt(b []byte, off int64) (int, error) {
	if *f.left--; *f.left < 0 {
		return 0, errWrite
	}
	return f.storage.WriteAt(b, off)
}

// A write that fails is the error, and the superblock, which comes last, is not written then.
func TestRenewCannotWrite(t *testing.T) {
	p := aged(5)
	for n := range 6 {
		im := p.Image()
		left := n
		if _, err := thinmeta.Renew(t.Context(), failing{storage{im}, &left}, thinmeta.Renewal{IDs: p.IDs(), TransactionID: 9}); !errors.Is(err, errWrite) {
			t.Errorf("%d writes: %v", n, err)
		}
		if s, err := thinmeta.ReadSuperblock(im); err != nil || s.TransactionID == 9 {
			t.Errorf("%d writes: superblock %+v, %v", n, s, err)
		}
	}
}

// Debian's tools find renewed metadata whole, and read the same in it.
func TestRenewedAgrees(t *testing.T) {
	thintools.Need(t)
	for seed := range uint64(4) {
		p := aged(seed)
		im := p.Image()
		if _, err := thinmeta.Renew(t.Context(), storage{im}, thinmeta.Renewal{IDs: p.IDs(), TransactionID: seed}); err != nil {
			t.Fatal(err)
		}
		thintools.Agree(t, thintools.Subject{Path: thintools.Save(t, im.Bytes), Pairs: [][2]uint64{{0, 1}, {1, 2}}})
	}
}
