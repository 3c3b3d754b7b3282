package thinmeta_test

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// large is a pool of 1,000 devices and 1,000,000 mappings in 50 families: snapshots of snapshots, each written to.
var large = sync.OnceValue(func() *metagen.Image {
	p := metagen.New(metagen.Options{Seed: 11, DataBlocks: 4_000_000, MetadataBlocks: 16 << 10})
	for id := range uint64(1000) {
		if id%20 == 0 {
			p.Thin(id)
			p.Write(id, 0, 1000)
			continue
		}
		p.Snap(id, id-1-id%20/2)
		p.Write(id, id*37%800, 90)
		p.Write(id, 1000+id, 2) // more than the origin has
	}
	return p.Image()
})

// many is a pool of 10,000 devices: images of 20 layers, and 9,600 containers of them that were written to a little.
var many = sync.OnceValue(func() *metagen.Image {
	p := metagen.New(metagen.Options{DataBlocks: 4_000_000, MetadataBlocks: 24 << 10})
	for id := range uint64(400) {
		if id%20 == 0 {
			p.Thin(id)
			p.Write(id, 0, 2000)
			continue
		}
		p.Snap(id, id-1)
		p.Write(id, 2000+id%20*500, 500)
	}
	for id := uint64(400); id < 10_000; id++ {
		p.Snap(id, id%400)
		p.Write(id, id%1900, 16)
	}
	return p.Image()
})

func TestAgreesOnMillion(t *testing.T) {
	thintools.Need(t)
	path := thintools.Save(t, large().Bytes)
	thintools.Agree(t, thintools.Subject{Path: path, Pairs: [][2]uint64{{1, 2}, {19, 0}, {999, 17}}})
	m := openImage(t, large(), thinmeta.Options{})
	r, err := m.Check(t.Context())
	if err != nil || r.Devices != 1000 || r.Mappings < 1_000_000 {
		t.Errorf("%d devices, %d mappings, %v", r.Devices, r.Mappings, err)
	}
}

// restore makes metadata with thin_restore.
func restore(t *testing.T, megabytes int64, write func(w io.Writer) error) string {
	t.Helper()
	dir := thintools.Dir(t)
	xml, path := filepath.Join(dir, "xml"), filepath.Join(dir, "metadata")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, megabytes<<20); err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(xml)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	if err := write(w); err != nil {
		t.Fatal(err)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	thintools.Run(t, "thin_restore", "-q", "-i", xml, "-o", path)
	return path
}

func TestAgreesOnRestored(t *testing.T) {
	thintools.Need(t)
	for seed := range uint64(4) {
		p := history(100+seed, 200)
		m := openImage(t, p.Image(), thinmeta.Options{})
		path := restore(t, 16, func(w io.Writer) error { return thintools.Dump(t.Context(), m, w) })
		thintools.Agree(t, thintools.Subject{Path: path, Pairs: pairs(p), Restored: true})
	}
}

// TestAgreesOnRestoredMillion has no runs at all: each mapping stands for itself, and half of them are shared.
func TestAgreesOnRestoredMillion(t *testing.T) {
	thintools.Need(t)
	path := restore(t, 128, func(w io.Writer) error {
		fmt.Fprintln(w, `<superblock uuid="" time="2" transaction="5" flags="0" version="2" data_block_size="128" nr_data_blocks="1100000">`)
		for id := range 1000 {
			fmt.Fprintf(w, "<device dev_id=\"%d\" mapped_blocks=\"1000\" transaction=\"%d\" creation_time=\"1\" snap_time=\"2\">\n", id, id%5)
			for block := range 1000 {
				data := id*1000 + block*7%1000
				if block%2 == 0 {
					data = 1_000_000 + block*13%1000
				}
				fmt.Fprintf(w, "<single_mapping origin_block=\"%d\" data_block=\"%d\" time=\"%d\"/>\n", block*3, data, block%2)
			}
			fmt.Fprintln(w, "</device>")
		}
		_, err := fmt.Fprintln(w, "</superblock>")
		return err
	})
	thintools.Agree(t, thintools.Subject{Path: path, Pairs: [][2]uint64{{0, 999}}, Restored: true})
}

// BenchmarkLarge is of 1,000 devices and 1,000,000 mappings, which lie scattered, and of 10,000 devices. live-MB is
// what is held in the end, the cache included.
func BenchmarkLarge(b *testing.B) {
	for _, pool := range []struct {
		name  string
		image func() *metagen.Image
	}{{"1000", large}, {"10000", many}} {
		path := thintools.Save(b, pool.image().Bytes)
		b.Run(pool.name, func(b *testing.B) { benchmarkFile(b, path) })
	}
}

func benchmarkFile(b *testing.B, path string) {
	for _, op := range []struct {
		name string
		run  func(m *thinmeta.Metadata) (any, error)
	}{
		{"Usage", func(m *thinmeta.Metadata) (any, error) { return m.Usage(b.Context()) }},
		{"Check", func(m *thinmeta.Metadata) (any, error) { return m.Check(b.Context()) }},
		{"Devices", func(m *thinmeta.Metadata) (any, error) { return drain(m.Devices(b.Context())) }},
		{"Diff", func(m *thinmeta.Metadata) (any, error) {
			return drain(m.Diff(b.Context(), 20, 21, thinmeta.DiffOptions{}))
		}},
		{"Mappings", func(m *thinmeta.Metadata) (any, error) {
			for id := range uint64(1000) {
				if _, err := drain(m.Mappings(b.Context(), id)); err != nil {
					return nil, err
				}
			}
			return nil, nil
		}},
	} {
		b.Run(op.name, func(b *testing.B) {
			b.ReportAllocs()
			var live uint64
			for b.Loop() {
				live = liveAfter(b, path, op.run)
			}
			b.ReportMetric(float64(live)/1e6, "live-MB")
		})
	}
}

func drain[E any](seq func(func(E, error) bool)) (int, error) {
	n := 0
	for _, err := range seq {
		if err != nil {
			return n, err
		}
		n++
	}
	return n, nil
}

// liveAfter returns how much memory more than before is in use when an operation is done.
func liveAfter(b *testing.B, path string, run func(*thinmeta.Metadata) (any, error)) uint64 {
	b.StopTimer()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	f, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	b.StartTimer()
	m, err := thinmeta.Open(f, thinmeta.Options{})
	if err != nil {
		b.Fatal(err)
	}
	result, err := run(m)
	if err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(result)
	runtime.KeepAlive(m)
	b.StartTimer()
	return after.HeapAlloc - min(before.HeapAlloc, after.HeapAlloc)
}
