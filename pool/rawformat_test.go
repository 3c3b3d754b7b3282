package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
)

func sampleHeader() diskHeader {
	return diskHeader{
		UUID: strings.Repeat("0123456789abcdef", 2), Name: strings.Repeat("n", 128), Role: rawMetaRole,
		Created: time.Date(2026, 1, 2, 3, 4, 5, 123456789, time.UTC), Start: headerSpace,
	}
}

func TestDiskHeader(t *testing.T) {
	want := sampleHeader()
	b, err := encodeHeader(want)
	if err != nil || len(b) != headerSize {
		t.Fatalf("%d bytes, %v", len(b), err)
	}
	got, err := decodeHeader(bytes.NewReader(b))
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	// Its signature is known, and it is all in the first sector.
	if found, err := fsutil.ProbeReader(bytes.NewReader(b), int64(len(b))); err != nil || len(found) != 1 || found[0].Type != "dmlayer" || !isZero(b[headerSector:]) {
		t.Errorf("found %v, %v", found, err)
	}
	change := func(name string, class error, fn func(b []byte) []byte) {
		if _, err := decodeHeader(bytes.NewReader(fn(bytes.Clone(b)))); !errors.Is(err, class) {
			t.Errorf("%s: %v", name, err)
		}
	}
	change("blank", errNoHeader, func(b []byte) []byte { clear(b); return b })
	change("short", errNoHeader, func(b []byte) []byte { return b[:headerSector-1] })
	change("another version", errs.ErrUnsupported, func(b []byte) []byte { b[headerVersion+1] = '2'; return b })
	change("length", errs.ErrDamaged, func(b []byte) []byte { b[len(headerMagic)+1] = 0xff; return b })
	change("bit", errs.ErrDamaged, func(b []byte) []byte { b[40] ^= 1; return b })
	for name, fn := range map[string]func(h *diskHeader){
		"role":  func(h *diskHeader) { h.Role = "spare" },
		"uuid":  func(h *diskHeader) { h.UUID = "../.." },
		"name":  func(h *diskHeader) { h.Name = "a/b" },
		"start": func(h *diskHeader) { h.Start = 4096 },
	} {
		h := want
		fn(&h)
		b, err := encodeHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeHeader(bytes.NewReader(b)); !errors.Is(err, errs.ErrDamaged) {
			t.Errorf("wrong %s: %v", name, err)
		}
	}
	long := want
	long.Name = strings.Repeat("n", headerSector)
	if _, err := encodeHeader(long); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("too long for a sector: %v", err)
	}
}

func FuzzDiskHeader(f *testing.F) {
	b, err := encodeHeader(sampleHeader())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(headerMagic))
	f.Add(append([]byte(headerMagic), 0xff, 0xff, 0xff, 0xff))
	f.Fuzz(func(t *testing.T, b []byte) {
		// Behind the checksum lies a parser too.
		if n := len(headerMagic) + 4; len(b) >= headerSector {
			size := int(binary.LittleEndian.Uint32(b[len(headerMagic):]))
			if size >= 0 && size <= headerSector-n-4 {
				binary.LittleEndian.PutUint32(b[n+size:], crc32.Checksum(b[:n+size], castagnoli))
			}
		}
		h, err := decodeHeader(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := encodeHeader(h)
		if err != nil {
			return // JSON can be spelled shorter than we do
		}
		if got, err := decodeHeader(bytes.NewReader(again)); err != nil || !got.Created.Equal(h.Created) || got.UUID != h.UUID || got.Role != h.Role {
			t.Errorf("%+v became %+v, %v", h, got, err)
		}
	})
}

// disksFor makes two files with noise, zeros and a first sector of the pool's.
func disksFor(t *testing.T) (data, meta *os.File, before [][]byte) {
	t.Helper()
	dir := t.TempDir()
	rnd := rand.New(rand.NewSource(7))
	var files []*os.File
	for i, size := range []int{5<<20 + 512, 3 << 20} {
		b := make([]byte, size)
		rnd.Read(b[:20000])
		rnd.Read(b[1<<20+100 : 2<<20])
		rnd.Read(b[size-700:])
		path := filepath.Join(dir, string('a'+rune(i)))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = f.Close() })
		files, before = append(files, f), append(before, b)
	}
	return files[0], files[1], before
}

func TestDisksSavedAndPutBack(t *testing.T) {
	ctx := context.Background()
	data, meta, before := disksFor(t)
	path := filepath.Join(t.TempDir(), "disks.saved")
	tail := fsutil.Range{Offset: 5<<20 - 4096, Length: 4096 + 512}
	saves := []saving{
		{rawDataRole, data, 5<<20 + 512, []fsutil.Range{{Length: 2<<20 + 777}, tail}, []byte(`{"path":"/dev/x"}`)},
		{rawMetaRole, meta, 3 << 20, []fsutil.Range{{Length: 3 << 20}}, nil},
	}
	if err := saveDisks(ctx, path, saves); err != nil {
		t.Fatal(err)
	}
	disks, err := readSaved(path)
	if err != nil || len(disks) != 2 || disks[rawDataRole].size != 5<<20+512 || !bytes.Equal(disks[rawMetaRole].first, before[1][:headerSector]) {
		t.Fatalf("%+v, %v", disks, err)
	}
	for i, s := range saves {
		f := []*os.File{data, meta}[i]
		noise := make([]byte, 1<<20)
		rand.New(rand.NewSource(9)).Read(noise)
		for _, r := range s.ranges {
			for off := r.Offset; off < r.End(); off += int64(len(noise)) {
				if _, err := f.WriteAt(noise[:min(int64(len(noise)), r.End()-off)], off); err != nil {
					t.Fatal(err)
				}
			}
		}
		for range 2 { // it can be repeated
			first, err := putBack(ctx, path, s.role, f, 0)
			if err == nil {
				err = writeFirst(f, first)
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(f.Name()); err != nil || !bytes.Equal(got, before[i]) {
				t.Errorf("%s is not what it was, %v", s.role, err)
			}
		}
	}
}

// What was saved and is not whole is never put back.
func TestSavedDisksDamaged(t *testing.T) {
	ctx := context.Background()
	data, meta, _ := disksFor(t)
	dir := t.TempDir()
	path := filepath.Join(dir, "disks.saved")
	saves := []saving{
		{rawDataRole, data, 5<<20 + 512, []fsutil.Range{{Length: 8192}}, []byte(`{"path":"/dev/x"}`)},
		{rawMetaRole, meta, 3 << 20, []fsutil.Range{{Length: 8192}}, nil},
	}
	if err := saveDisks(ctx, path, saves); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	look := func(what string, b []byte) {
		damaged := filepath.Join(dir, "damaged")
		if err := os.WriteFile(damaged, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSaved(damaged); !errors.Is(err, errs.ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for n := 0; n < len(whole); n += 97 {
		look("cut", whole[:n])
		b := bytes.Clone(whole)
		b[n] ^= 4
		look("bit", b)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := saveDisks(cancelled, filepath.Join(dir, "none"), saves); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(dir, "none*")); err != nil || len(left) > 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

func FuzzSavedDisks(f *testing.F) {
	f.Add([]byte(saveMagic))
	var w saveWriter
	var b bytes.Buffer
	w.w = &b
	w.bytes([]byte(saveMagic))
	w.entry(saveSize, rawDataRole, fsutil.Range{Length: 1 << 20}, nil)
	w.entry(savePlace, rawDataRole, fsutil.Range{Length: 2}, []byte("{}"))
	w.piece(rawDataRole, 0, append(make([]byte, 4096), "something"...))
	w.entry(saveEnd, rawDataRole, fsutil.Range{Offset: int64(w.entries)}, nil)
	f.Add(b.Bytes())
	f.Fuzz(func(t *testing.T, b []byte) {
		total := int64(0)
		_ = readSave(bytes.NewReader(b), func(e saveEntry) error {
			if e.role == "" || e.Offset < 0 || e.Length < 0 || e.End() < e.Offset || (e.kind == saveBytes || e.kind == savePlace) && int64(len(e.data)) != e.Length {
				t.Errorf("entry %+v", e)
			}
			total += int64(len(e.data))
			return nil
		})
		if total > int64(len(b)) {
			t.Errorf("%d bytes of %d", total, len(b))
		}
	})
}
