package thinmeta_test

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"reflect"
	"sync"
	"syscall"
	"testing"
	"unsafe"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// disk is an image that is read as a device with direct I/O is, with bad blocks.
type disk struct {
	io.ReaderAt
	t   testing.TB
	bad map[uint64]bool

	mu    sync.Mutex
	reads int
}

func (d *disk) ReadAt(b []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.reads++
	address := uintptr(unsafe.Pointer(&b[0]))
	if off%thinmeta.BlockSize != 0 || len(b)%thinmeta.BlockSize != 0 || address%thinmeta.BlockSize != 0 {
		d.t.Errorf("%d bytes at %d into %#x", len(b), off, address)
	}
	for block := off / thinmeta.BlockSize; block*thinmeta.BlockSize < off+int64(len(b)); block++ {
		if d.bad[uint64(block)] {
			n, _ := d.ReaderAt.ReadAt(b[:block*thinmeta.BlockSize-off], off)
			return n, syscall.EIO
		}
	}
	return d.ReaderAt.ReadAt(b, off)
}

func TestReadsAsDirectIODoes(t *testing.T) {
	m, err := thinmeta.Open(&disk{ReaderAt: victim().Image(), t: t}, thinmeta.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := m.Check(t.Context()); err != nil || r.Err() != nil {
		t.Errorf("%v, %v", err, r.Err())
	}
}

// TestBadSector wants a block that cannot be read to hide itself, and not its neighbours.
func TestBadSector(t *testing.T) {
	o := oracleOf(victim(), [2]uint64{1, 2})
	im := victim().Image()
	for i, block := range im.Find(func(i metagen.Info) bool { return i.Tree == "mappings" }) {
		if i%20 != 0 {
			continue
		}
		d := &disk{ReaderAt: im, t: t, bad: map[uint64]bool{block: true}}
		m, err := thinmeta.Open(d, thinmeta.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r, err := m.Check(t.Context())
		if err != nil || len(r.Damage) != 1 || !errors.Is(r.Err(), syscall.EIO) || !errors.Is(r.Err(), thinmeta.ErrDamaged) {
			t.Fatalf("block %d: %v, %v", block, err, r.Damage)
		}
		for id := range o.devices {
			besideInDevice(t, o, m, id)
		}
		besideInDiff(t, o, m, [2]uint64{1, 2})
	}
}

// TestSharedIsNotRead compares a device with a snapshot that hardly differs.
func TestSharedIsNotRead(t *testing.T) {
	im := victim().Image()
	reads := func(left, right uint64, same bool) int {
		d := &disk{ReaderAt: im, t: t}
		m, err := thinmeta.Open(d, thinmeta.Options{})
		if err != nil {
			t.Fatal(err)
		}
		all(t, m.Diff(t.Context(), left, right, thinmeta.DiffOptions{Same: same}))
		return d.reads
	}
	// The superblock, the device tree, and down to one leaf on each side; each block in a cluster of its own.
	if n := reads(500, 501, false); n > 12 {
		t.Errorf("%d reads for what differs", n)
	}
	if n := reads(500, 500, false); n > 3 {
		t.Errorf("%d reads for a device and itself", n)
	}
	if n := reads(500, 501, true); n < 50 {
		t.Errorf("%d reads for everything", n)
	}
}

// TestUsedByMany uses one Metadata in several goroutines, with a cache that is too small.
func TestUsedByMany(t *testing.T) {
	m := openImage(t, victim().Image(), thinmeta.Options{CacheBytes: 1})
	want, err := m.Check(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	u, err := m.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var group sync.WaitGroup
	for i := range uint64(6) {
		group.Go(func() {
			if r, err := m.Check(t.Context()); err != nil || !reflect.DeepEqual(r, want) {
				t.Errorf("check: %+v, %v", r, err)
			}
			var n uint64
			for r, err := range u.Exclusive(t.Context(), 10+i) {
				if err != nil {
					t.Error(err)
				}
				n += r.Length
			}
			if d, _ := u.Device(10 + i); n != d.Exclusive {
				t.Errorf("device %d has %d blocks for itself, and %d", 10+i, d.Exclusive, n)
			}
		})
	}
	group.Wait()
}

// TestStops wants a loop that breaks to be left alone.
func TestStops(t *testing.T) {
	m := openImage(t, victim().Image(), thinmeta.Options{})
	first(t, m.Devices(t.Context()))
	first(t, m.Mappings(t.Context(), 1))
	first(t, m.Diff(t.Context(), 1, 2, thinmeta.DiffOptions{}))
	first(t, m.References(t.Context(), thinmeta.MetadataSpace))
}

func first[E any](t *testing.T, seq iter.Seq2[E, error]) {
	t.Helper()
	for _, err := range seq {
		if err != nil {
			t.Error(err)
		}
		break
	}
}

func TestNoSuchDevice(t *testing.T) {
	m := openImage(t, victim().Image(), thinmeta.Options{})
	for _, id := range []uint64{0, 4, 502, 1 << 40} {
		_, err := m.Device(t.Context(), id)
		errs := []error{err}
		for _, err := range m.Mappings(t.Context(), id) {
			errs = append(errs, err)
		}
		for _, err := range m.Diff(t.Context(), 1, id, thinmeta.DiffOptions{}) {
			errs = append(errs, err)
		}
		for _, err := range errs {
			if !errors.Is(err, thinmeta.ErrNoDevice) || errors.Is(err, thinmeta.ErrDamaged) {
				t.Errorf("device %d: %v", id, err)
			}
		}
		if len(errs) != 3 {
			t.Errorf("device %d: %d errors", id, len(errs))
		}
	}
}

func TestMetadataSnapshotHasNoSpaceMaps(t *testing.T) {
	p := victim()
	p.Hold()
	p.Write(1, 100, 20)
	im := p.Image()
	m := openImage(t, im, thinmeta.Options{Root: im.Held})
	for _, err := range m.References(t.Context(), thinmeta.DataSpace) {
		if !errors.Is(err, thinmeta.ErrNoSpaceMap) {
			t.Error(err)
		}
	}
	compareMappings(t, victim(), m)
	if r, err := m.Check(t.Context()); err != nil || r.Err() != nil || r.Devices == 0 {
		t.Errorf("check: %+v, %v", r, err)
	}
	if r := check(t, im); r.Err() != nil || len(r.Leaks) > 0 {
		t.Errorf("check of the pool: %v, %v", r.Err(), r.Leaks)
	}
	// The metadata snapshot is damaged as well if it shares the block.
	leaf := im.Find(func(i metagen.Info) bool { return i.Tree == "details" })[0]
	clear(im.Block(leaf))
	if check(t, im).Err() == nil {
		t.Error("damage is not found")
	}
}

func TestWords(t *testing.T) {
	for want, have := range map[string]fmt.Stringer{
		"same": thinmeta.Same, "right only": thinmeta.RightOnly, "change 9": thinmeta.Change(9), "data": thinmeta.DataSpace,
		"metadata": thinmeta.MetadataSpace, "device details": thinmeta.TreeDetails, "tree 99": thinmeta.Tree(99),
		"mappings of device 3 (by way of blocks 4, 5)": thinmeta.Path{Tree: thinmeta.TreeMappings, Device: 3, Blocks: []uint64{4, 5}},
	} {
		if have.String() != want {
			t.Errorf("%q, want %q", have, want)
		}
	}
}
