package thinmeta_test

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// victim is a pool that has something of everything to damage: trees of three levels, and blocks with one, two
// and many references.
func victim() *metagen.Pool {
	p := metagen.New(metagen.Options{Seed: 7, MetadataBlocks: 1536})
	p.Thin(1)
	p.Write(1, 0, 2000)
	p.Snap(2, 1)
	p.Write(1, 500, 10)
	p.Thin(3)
	for i := range uint64(20) {
		p.Snap(10+i, 2)
		p.Write(10+i, i, 1)
	}
	p.Unmap(2, 100, 100)
	p.Thin(500)
	p.Map(500, metagen.Mapping{Begin: 1 << 20, Data: 20_000, Length: 70_000})
	p.Write(500, 0, 1500)
	p.Snap(501, 500)
	p.Write(501, 700, 30)
	return p
}

// forEachDamage applies each damage to a copy, with different random numbers.
func forEachDamage(t *testing.T, rounds uint64, test func(t *testing.T, d metagen.Damage, im *metagen.Image)) {
	healthy := victim().Image()
	for _, d := range metagen.Damages() {
		t.Run(d.Name, func(t *testing.T) {
			t.Parallel()
			for round := range rounds {
				im := healthy.Clone()
				if !d.Apply(im, rand.New(rand.NewPCG(round, 5))) {
					if notThere(d.Name) {
						continue
					}
					t.Fatal("there is nothing to be damaged this way")
				}
				test(t, d, im)
			}
		})
	}
}

// notThere are damages that need what no pool has.
func notThere(name string) bool {
	return name == "itself as grandchild in root of mappings" || // its children are leaves
		name == "keys in disorder in high root of mappings" // two keys
}

// TestDamageIsFound wants Check to tell damage, leaks and stale numbers apart.
func TestDamageIsFound(t *testing.T) {
	forEachDamage(t, 3, func(t *testing.T, d metagen.Damage, im *metagen.Image) {
		r := check(t, im)
		effect := metagen.Stale
		switch {
		case len(r.Damage) > 0:
			effect = metagen.Damaged
		case len(r.Leaks) > 0:
			effect = metagen.Leaked
		case len(r.Stale) == 0:
			t.Fatal("nothing is found")
		}
		if effect != d.Effect {
			t.Errorf("effect %d, want %d: %v, %v, %v", effect, d.Effect, r.Damage, r.Leaks, r.Stale)
		}
		if (r.Err() != nil) != (len(r.Damage) > 0) || r.Err() != nil && !errors.Is(r.Err(), thinmeta.ErrDamaged) {
			t.Errorf("error %v", r.Err())
		}
		for _, err := range r.Damage {
			checkDamage(t, err)
		}
	})
}

func check(t testing.TB, im *metagen.Image) *thinmeta.Report {
	t.Helper()
	r, err := openImage(t, im, thinmeta.Options{}).Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// checkDamage wants an error that says what and where.
func checkDamage(t testing.TB, err error) {
	t.Helper()
	if count := (*thinmeta.CountError)(nil); errors.As(err, &count) {
		if !errors.Is(err, thinmeta.ErrMismatch) || count.Length == 0 {
			t.Errorf("%v", err)
		}
		return
	}
	var d *thinmeta.Damage
	if !errors.As(err, &d) || !errors.Is(err, thinmeta.ErrDamaged) || d.First > d.Last || !strings.HasPrefix(err.Error(), "thinmeta: ") {
		t.Errorf("no damage: %v", err)
		return
	}
	classes := []error{thinmeta.ErrChecksum, thinmeta.ErrStructure, thinmeta.ErrRange, thinmeta.ErrLoop, thinmeta.ErrMismatch, thinmeta.ErrDamaged, thinmeta.ErrNotThin, thinmeta.ErrBlank, syscall.EIO}
	if !slices.ContainsFunc(classes, func(class error) bool { return errors.Is(d.Cause, class) }) {
		t.Errorf("no class: %v", err)
	}
}

// unseen is damage that reading cannot see: the trees are in order, and say something else.
func unseen(name string) bool {
	return strings.HasPrefix(name, "two mappings") || strings.HasPrefix(name, "mapping to a free") || strings.HasPrefix(name, "lost mapping") ||
		strings.HasPrefix(name, "data block out of range") || strings.HasPrefix(name, "too few entries") ||
		strings.HasPrefix(name, "other level in") // children become mappings, and values children
}

// TestReadsBesideDamage wants everything that damage does not hide, unharmed.
func TestReadsBesideDamage(t *testing.T) {
	pairs := [][2]uint64{{1, 2}, {501, 500}}
	o := oracleOf(victim(), pairs...)
	forEachDamage(t, 1, func(t *testing.T, d metagen.Damage, im *metagen.Image) {
		if unseen(d.Name) {
			return
		}
		m := openImage(t, im, thinmeta.Options{})
		for _, err := range m.Devices(t.Context()) {
			if err != nil {
				checkDamage(t, err)
			}
		}
		for id := range o.devices {
			besideInDevice(t, o, m, id)
		}
		for _, pair := range pairs {
			besideInDiff(t, o, m, pair)
		}
		u, err := m.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range u.Devices {
			if want := uint64(len(o.devices[d.ID])); d.Err == nil && d.Mapped != want {
				t.Errorf("device %d has %d mappings, want %d", d.ID, d.Mapped, want)
			}
			if d.Err != nil && u.Err == nil {
				t.Error("a device has an error, all together not")
			}
		}
	})
}

// oracle is what each device has at each of its blocks, in order, and how some differ.
type oracle struct {
	devices map[uint64][]thinmeta.Mapping
	diffs   map[[2]uint64][]thinmeta.Difference
}

func oracleOf(p *metagen.Pool, pairs ...[2]uint64) oracle {
	o := oracle{map[uint64][]thinmeta.Mapping{}, map[[2]uint64][]thinmeta.Difference{}}
	for _, id := range p.IDs() {
		o.devices[id] = slices.SortedFunc(maps.Values(blocksOf(p, id)), func(a, b thinmeta.Mapping) int { return cmp.Compare(a.Begin, b.Begin) })
	}
	for _, pair := range pairs {
		diff := naiveDiff(blocksOf(p, pair[0]), blocksOf(p, pair[1]))
		o.diffs[pair] = slices.SortedFunc(maps.Values(diff), func(a, b thinmeta.Difference) int { return cmp.Compare(a.Begin, b.Begin) })
	}
	return o
}

// TestLostDevices damages parts of the two trees that know the devices.
func TestLostDevices(t *testing.T) {
	p := metagen.New(metagen.Options{})
	for id := range uint64(700) {
		p.Thin(id * 3)
		p.Write(id*3, 0, 1)
	}
	for _, tree := range []string{"devices", "details"} {
		im := p.Image()
		leaves := im.Find(func(i metagen.Info) bool { return i.Tree == tree && i.Level == 0 })
		clear(im.Block(leaves[1])) // not the first one
		m := openImage(t, im, thinmeta.Options{})
		var ids []uint64
		var lost []*thinmeta.Damage
		withError := map[uint64]error{}
		for d, err := range m.Devices(t.Context()) {
			var damage *thinmeta.Damage
			switch {
			case err == nil || d.ID != 0:
				ids = append(ids, d.ID)
				withError[d.ID] = err
			case errors.As(err, &damage):
				lost = append(lost, damage)
			}
		}
		if !slices.Equal(ids, p.IDs()) || len(lost) != 1 {
			t.Fatalf("%s: devices %v, lost %v", tree, ids, lost)
		}
		for id, err := range withError {
			hidden := lost[0].First <= id && id <= lost[0].Last
			if (err != nil) != (hidden && tree == "devices") || errors.Is(err, thinmeta.ErrMismatch) {
				t.Errorf("%s: device %d: %v, hidden %v", tree, id, err, hidden)
			}
		}
		if r := check(t, im); len(r.Damage) != 1 || len(r.Leaks) > 0 {
			t.Errorf("%s: damage %v, leaks %v", tree, r.Damage, r.Leaks)
		}
	}
}

// hidden collects the keys that errors name.
type hidden []*thinmeta.Damage

func (h *hidden) add(t *testing.T, err error) {
	t.Helper()
	checkDamage(t, err)
	var d *thinmeta.Damage
	if errors.As(err, &d) {
		*h = append(*h, d)
	}
}

func (h hidden) has(block uint64) bool {
	return slices.ContainsFunc(h, func(d *thinmeta.Damage) bool { return d.First <= block && block <= d.Last })
}

func besideInDevice(t *testing.T, o oracle, m *thinmeta.Metadata, id uint64) {
	t.Helper()
	var have []thinmeta.Mapping
	var lost hidden
	for r, err := range m.Mappings(t.Context(), id) {
		if errors.Is(err, thinmeta.ErrNoDevice) || err != nil && lostDevice(err) {
			return
		}
		if err != nil {
			lost.add(t, err)
			continue
		}
		for i := range r.Length {
			have = append(have, thinmeta.Mapping{Begin: r.Begin + i, Data: r.Data + i, Length: 1, Time: r.Time})
		}
	}
	for _, want := range o.devices[id] {
		switch {
		case len(have) > 0 && have[0] == want:
			have = have[1:]
		case !lost.has(want.Begin):
			t.Fatalf("device %d: %+v is missing, lost are %v", id, want, lost)
		}
	}
	if len(have) > 0 {
		t.Fatalf("device %d: %+v is wrong", id, have[0])
	}
}

// lostDevice tells whether the way to the device is lost.
func lostDevice(err error) bool {
	var d *thinmeta.Damage
	return errors.As(err, &d) && d.Path.Tree == thinmeta.TreeDevices
}

func besideInDiff(t *testing.T, o oracle, m *thinmeta.Metadata, pair [2]uint64) {
	t.Helper()
	for _, same := range []bool{false, true} {
		var have []thinmeta.Difference
		var lost hidden
		for d, err := range m.Diff(t.Context(), pair[0], pair[1], thinmeta.DiffOptions{Same: same}) {
			if errors.Is(err, thinmeta.ErrNoDevice) || err != nil && lostDevice(err) {
				return
			}
			if err != nil {
				lost.add(t, err)
				continue
			}
			for i := range d.Length {
				have = append(have, thinmeta.Difference{Change: d.Change, Begin: d.Begin + i, Length: 1})
			}
		}
		for _, want := range o.diffs[pair] {
			switch {
			case len(have) > 0 && have[0].Begin == want.Begin && (have[0].Change == want.Change || lost.has(want.Begin)):
				have = have[1:]
			case !lost.has(want.Begin) && (same || want.Change != thinmeta.Same):
				t.Fatalf("%v: %+v is missing, lost are %v", pair, want, lost)
			}
		}
		if len(have) > 0 {
			t.Fatalf("%v: %+v is wrong", pair, have[0])
		}
	}
}

// unchecked is damage that thin_check 0.9 says nothing about: it looks at the references of metadata blocks, and
// not at those of data blocks, at the size of the data device, or at whether devices have details.
var unchecked = []string{
	"superblock with fewer data blocks than there are", "superblock with more data blocks than bitmaps", "device without details in details",
	"data block out of range in leaf of mappings", "two mappings to one data block in leaf of mappings", "mapping to a free data block in leaf of mappings",
	"lost mapping in leaf of mappings",
}

func isUnchecked(name string) bool {
	return slices.Contains(unchecked, name) || strings.HasSuffix(name, " in data bitmap") && !strings.HasPrefix(name, "other ") && !strings.HasPrefix(name, "zeros") ||
		strings.Contains(name, "reference") && strings.HasSuffix(name, " in data count tree")
}

// TestAgreesWithThinCheckOnDamage wants whatever thin_check finds to be found, and more only where that is known.
func TestAgreesWithThinCheckOnDamage(t *testing.T) {
	thintools.Need(t)
	forEachDamage(t, 1, func(t *testing.T, d metagen.Damage, im *metagen.Image) {
		r := check(t, im)
		content, said := thintools.Check(t, thintools.Save(t, im.Bytes))
		if found := len(r.Damage)+len(r.Leaks) > 0; found == content && !(content && isUnchecked(d.Name)) {
			t.Errorf("thin_check is content: %v, and Check has found %v, %v; it says\n%s", content, r.Damage, r.Leaks, said)
		}
	})
}

// TestErrorsThatAreTold looks at texts.
func TestErrorsThatAreTold(t *testing.T) {
	im := victim().Image()
	leaf := im.Find(func(i metagen.Info) bool { return i.Tree == "mappings" && i.Level == 0 && i.References > 1 && !i.Root })[0]
	im.Block(leaf)[100] ^= 1
	var texts []string
	for _, id := range []uint64{1, 2, 10, 500} {
		for _, err := range openImage(t, im, thinmeta.Options{}).Mappings(t.Context(), id) {
			if err != nil {
				texts = append(texts, err.Error())
			}
		}
	}
	if len(texts) == 0 {
		t.Fatal("no error")
	}
	for _, text := range texts {
		for _, want := range []string{"mappings of device ", "by way of block", "virtual blocks ", "checksum is "} {
			if !strings.Contains(text, want) {
				t.Errorf("%q does not say %q", text, want)
			}
		}
	}
}

func TestNobodyWaits(t *testing.T) {
	m := openImage(t, victim().Image(), thinmeta.Options{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Check(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("check: %v", err)
	}
	if _, err := m.Usage(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("usage: %v", err)
	}
	if _, err := m.Device(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("device: %v", err)
	}
	one(t, "devices", m.Devices(ctx))
	one(t, "mappings", m.Mappings(ctx, 1))
	one(t, "diff", m.Diff(ctx, 1, 2, thinmeta.DiffOptions{}))
	one(t, "data", m.References(ctx, thinmeta.DataSpace))
	one(t, "metadata", m.References(ctx, thinmeta.MetadataSpace))
}

// one wants nothing but one error.
func one[E any](t *testing.T, what string, seq func(func(E, error) bool)) {
	t.Helper()
	n := 0
	for _, err := range seq {
		if n++; n > 1 || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %d: %v", what, n, err)
		}
	}
	if n != 1 {
		t.Errorf("%s: %d results", what, n)
	}
}
