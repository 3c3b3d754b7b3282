package thinmeta_test

import (
	"fmt"
	"iter"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// history makes a pool by random operations.
func history(seed uint64, operations int) *metagen.Pool {
	r := rand.New(rand.NewPCG(seed, 3))
	p := metagen.New(metagen.Options{Seed: seed, DataBlocks: 200_000, MetadataBlocks: 8192})
	p.TransactionID = seed
	p.Thin(0)
	next := uint64(1)
	for range operations {
		ids := p.IDs()
		id := ids[r.IntN(len(ids))]
		begin := r.Uint64N(3000)
		switch n := r.IntN(20); {
		case n == 0:
			p.Thin(next)
			next += 1 + r.Uint64N(100)
		case n < 4:
			p.TransactionID++
			p.Snap(next, id)
			next++
		case n == 4 && len(ids) > 3:
			p.Delete(id)
		case n == 5:
			p.Hold()
		case n < 9:
			p.Unmap(id, begin, 1+r.Uint64N(400))
		default:
			p.Write(id, begin, 1+r.Uint64N(200))
		}
	}
	return p
}

// pairs are some devices to compare.
func pairs(p *metagen.Pool) [][2]uint64 {
	ids := p.IDs()
	out := [][2]uint64{{ids[0], ids[0]}}
	for i := range ids[1:] {
		out = append(out, [2]uint64{ids[i], ids[i+1]}, [2]uint64{ids[i+1], ids[i/2]})
	}
	return out[:min(len(out), 12)]
}

func openImage(t testing.TB, im *metagen.Image, o thinmeta.Options) *thinmeta.Metadata {
	t.Helper()
	m, err := thinmeta.Open(im, o)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// all collects what there is, without an error.
func all[E any](t testing.TB, seq iter.Seq2[E, error]) []E {
	t.Helper()
	var out []E
	for e, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

// blocksOf are the data blocks of a device by its own, each with the time.
func blocksOf(p *metagen.Pool, id uint64) map[uint64]thinmeta.Mapping {
	blocks := map[uint64]thinmeta.Mapping{}
	for _, m := range p.Mappings(id) {
		for i := range m.Length {
			blocks[m.Begin+i] = thinmeta.Mapping{Begin: m.Begin + i, Data: m.Data + i, Length: 1, Time: m.Time}
		}
	}
	return blocks
}

func TestReadsWhatWasWritten(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := history(seed, 10+20*int(seed))
			im := p.Image()
			m := openImage(t, im, thinmeta.Options{})
			compareMappings(t, p, m)
			compareUsage(t, p, m)
			compareDiffs(t, p, m)
			compareReferences(t, im, m)
			r, err := m.Check(t.Context())
			if err != nil || r.Err() != nil || len(r.Leaks)+len(r.Stale) > 0 || r.Devices != uint64(len(p.IDs())) {
				t.Errorf("check: %+v, %v", r, err)
			}
		})
	}
}

func compareMappings(t *testing.T, p *metagen.Pool, m *thinmeta.Metadata) {
	t.Helper()
	owners := ownersOf(p)
	var ids []uint64
	for _, d := range all(t, m.Devices(t.Context())) {
		ids = append(ids, d.ID)
		if again, err := m.Device(t.Context(), d.ID); err != nil || again != d {
			t.Errorf("device %+v looked up is %+v, %v", d, again, err)
		}
		var want []thinmeta.Mapping
		var mapped uint64
		for _, r := range p.Mappings(d.ID) {
			want = append(want, thinmeta.Mapping(r))
			mapped += r.Length
		}
		for _, r := range all(t, m.Mappings(t.Context(), d.ID)) {
			for i := range r.Length {
				if !d.MayShare(r) && owners[r.Data+i] > 1 {
					t.Errorf("device %d shares %+v, and may not", d.ID, r)
				}
			}
		}
		if have := all(t, m.Mappings(t.Context(), d.ID)); !slices.Equal(have, want) || d.MappedBlocks != mapped {
			t.Errorf("device %d with %d blocks has %v, want %v", d.ID, d.MappedBlocks, have, want)
		}
	}
	if !slices.Equal(ids, p.IDs()) {
		t.Errorf("devices %v, want %v", ids, p.IDs())
	}
}

// ownersOf counts the devices that have a data block.
func ownersOf(p *metagen.Pool) map[uint64]int {
	owners := map[uint64]int{}
	for _, id := range p.IDs() {
		for _, b := range blocksOf(p, id) {
			owners[b.Data]++
		}
	}
	return owners
}

func compareUsage(t *testing.T, p *metagen.Pool, m *thinmeta.Metadata) {
	t.Helper()
	owners := ownersOf(p)
	u, err := m.Usage(t.Context())
	if err != nil || u.Err != nil || u.Used != uint64(len(owners)) {
		t.Fatalf("%d data blocks in use, want %d, %v, %v", u.Used, len(owners), err, u.Err)
	}
	for i, id := range p.IDs() {
		blocks := blocksOf(p, id)
		var exclusive []thinmeta.Mapping
		for _, b := range blocks {
			if owners[b.Data] == 1 {
				exclusive = append(exclusive, b)
			}
		}
		slices.SortFunc(exclusive, func(a, b thinmeta.Mapping) int { return int(a.Begin) - int(b.Begin) })
		want := thinmeta.DeviceUsage{ID: id, Mapped: uint64(len(blocks)), Exclusive: uint64(len(exclusive))}
		if have, ok := u.Device(id); !ok || have != want || u.Devices[i] != want {
			t.Errorf("usage %+v, want %+v", have, want)
		}
		var have []thinmeta.Mapping
		for _, r := range all(t, u.Exclusive(t.Context(), id)) {
			for i := range r.Length {
				have = append(have, thinmeta.Mapping{Begin: r.Begin + i, Data: r.Data + i, Length: 1, Time: r.Time})
			}
		}
		if !slices.Equal(have, exclusive) {
			t.Errorf("device %d has for itself %v, want %v", id, have, exclusive)
		}
	}
	if _, ok := u.Device(1 << 40); ok {
		t.Error("usage of a device that does not exist")
	}
}

func compareDiffs(t *testing.T, p *metagen.Pool, m *thinmeta.Metadata) {
	t.Helper()
	for _, pair := range pairs(p) {
		left, right := blocksOf(p, pair[0]), blocksOf(p, pair[1])
		for _, same := range []bool{false, true} {
			have := map[uint64]thinmeta.Difference{}
			end := uint64(0)
			for _, d := range all(t, m.Diff(t.Context(), pair[0], pair[1], thinmeta.DiffOptions{Same: same})) {
				if d.Begin < end {
					t.Errorf("%v: %+v after block %d", pair, d, end)
				}
				end = d.Begin + d.Length
				for i := range d.Length {
					one := thinmeta.Difference{Change: d.Change, Begin: d.Begin + i, Length: 1}
					if d.Change != thinmeta.RightOnly {
						one.Left = d.Left + i
					}
					if d.Change != thinmeta.LeftOnly {
						one.Right = d.Right + i
					}
					have[one.Begin] = one
				}
			}
			for block, d := range naiveDiff(left, right) {
				if d.Change == thinmeta.Same && !same {
					continue
				}
				if have[block] != d {
					t.Fatalf("%v: %+v, want %+v", pair, have[block], d)
				}
				delete(have, block)
			}
			if len(have) > 0 {
				t.Errorf("%v: too many: %v", pair, have)
			}
		}
	}
}

func naiveDiff(left, right map[uint64]thinmeta.Mapping) map[uint64]thinmeta.Difference {
	diff := map[uint64]thinmeta.Difference{}
	for block, l := range left {
		d := thinmeta.Difference{Change: thinmeta.LeftOnly, Begin: block, Length: 1, Left: l.Data}
		if r, ok := right[block]; ok {
			d.Change, d.Right = thinmeta.Different, r.Data
			if l.Data == r.Data {
				d.Change = thinmeta.Same
			}
		}
		diff[block] = d
	}
	for block, r := range right {
		if _, ok := left[block]; !ok {
			diff[block] = thinmeta.Difference{Change: thinmeta.RightOnly, Begin: block, Length: 1, Right: r.Data}
		}
	}
	return diff
}

func compareReferences(t *testing.T, im *metagen.Image, m *thinmeta.Metadata) {
	t.Helper()
	have := map[uint64]uint32{}
	for _, r := range all(t, m.References(t.Context(), thinmeta.MetadataSpace)) {
		for i := range r.Length {
			have[r.Begin+i] = r.Count
		}
	}
	for block, info := range im.Blocks {
		if have[block] != info.References {
			t.Errorf("metadata block %d (%+v) has %d references", block, info, have[block])
		}
	}
	if len(have) != len(im.Blocks) {
		t.Errorf("%d metadata blocks are in use, want %d", len(have), len(im.Blocks))
	}
	var data uint64
	for _, r := range all(t, m.References(t.Context(), thinmeta.DataSpace)) {
		data += r.Length
	}
	if want := m.Superblock().DataSpace.Allocated; data != want {
		t.Errorf("%d data blocks are in use, want %d", data, want)
	}
}
