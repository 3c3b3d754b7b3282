package pool

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// sectors is a device in memory, in sectors as a disk writes them. It remembers the order of the writes.
type sectors struct {
	data   map[int64][]byte
	writes []sectorWrite
}

type sectorWrite struct {
	at  int64
	was []byte
	now []byte
}

func (d *sectors) ReadAt(b []byte, off int64) (int, error) {
	for i := range b {
		s := d.data[(off+int64(i))/512]
		if b[i] = 0; s != nil {
			b[i] = s[(off+int64(i))%512]
		}
	}
	return len(b), nil
}

func (d *sectors) WriteAt(b []byte, off int64) (int, error) {
	for n := 0; n < len(b); {
		at, skip := (off+int64(n))/512, int((off+int64(n))%512)
		now := make([]byte, 512)
		copy(now, d.data[at])
		n += copy(now[skip:], b[n:])
		d.writes = append(d.writes, sectorWrite{at, d.data[at], now})
		d.data[at] = now
	}
	return len(b), nil
}

func newest(t testing.TB, r io.ReaderAt) string {
	t.Helper()
	whole, _ := readSlots(r)
	if len(whole) == 0 {
		return ""
	}
	return string(whole[0].text)
}

func TestSlotsInTurn(t *testing.T) {
	d := &sectors{data: map[int64][]byte{}}
	if _, err := readSlots(d); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("of nothing: %v", err)
	}
	for i := range 5 {
		text := fmt.Sprint("copy ", i, strings.Repeat("x", 700*i))
		must(t, writeSlot(d, []byte(text)))
		whole, _ := readSlots(d)
		if newest(t, d) != text || len(whole) != min(i+1, 2) || whole[0].sequence != uint64(i+1) {
			t.Errorf("after copy %d: %d, %q", i, len(whole), newest(t, d))
		}
	}
}

// A power cut while a copy is being written leaves any of its sectors on the disk and any not. The one before is there in
// any case.
func TestPowerCutInSlot(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for round := range 200 {
		d := &sectors{data: map[int64][]byte{}}
		last := ""
		for i := range 1 + random.IntN(4) {
			last = fmt.Sprint("copy ", i, strings.Repeat("y", random.IntN(4000)))
			must(t, writeSlot(d, []byte(last)))
		}
		d.writes = nil
		next := "next" + strings.Repeat("z", random.IntN(4000))
		must(t, writeSlot(d, []byte(next)))
		lost := 0
		for _, w := range slices.Backward(d.writes) {
			if random.IntN(3) == 0 {
				d.data[w.at] = w.was
				lost++
			}
		}
		got := newest(t, d)
		if got != last && got != next || lost == 0 && got != next {
			t.Fatalf("round %d: %d of %d sectors lost, read %q", round, lost, len(d.writes), got)
		}
		must(t, writeSlot(d, []byte("after")))
		if got := newest(t, d); got != "after" {
			t.Fatalf("round %d: then read %q", round, got)
		}
	}
}

func TestDamagedSlots(t *testing.T) {
	d := &sectors{data: map[int64][]byte{}}
	must(t, writeSlot(d, []byte("old")))
	must(t, writeSlot(d, []byte("new")))
	for off := range int64(slotSum + 4) {
		b := []byte{0}
		_, _ = d.ReadAt(b, slotOffsets[1]+off)
		_, _ = d.WriteAt([]byte{b[0] ^ 1}, slotOffsets[1]+off)
		if got := newest(t, d); got != "old" {
			t.Fatalf("with byte %d of the head changed: %q", off, got)
		}
		_, _ = d.WriteAt(b, slotOffsets[1]+off)
	}
	if got := newest(t, d); got != "new" {
		t.Fatalf("put right again: %q", got)
	}
	_, _ = d.WriteAt([]byte("damaged"), slotOffsets[0])
	_, _ = d.WriteAt([]byte("damaged"), slotOffsets[1]+slotHeader)
	if whole, err := readSlots(d); len(whole) > 0 || err == nil {
		t.Errorf("of two damaged ones: %v, %v", whole, err)
	}
	must(t, writeSlot(d, []byte("again")))
	if got := newest(t, d); got != "again" {
		t.Errorf("then read %q", got)
	}
}

func FuzzReadSlots(f *testing.F) {
	head := encodeSlotHeader(7, []byte("text"))
	f.Add(head[:slotSum+4], []byte("text"))
	long := bytes.Clone(head[:slotSum])
	binary.LittleEndian.PutUint64(long[len(slotMagic)+8:], 1<<62)
	f.Add(binary.LittleEndian.AppendUint32(long, crc32.Checksum(long, castagnoli)), []byte("text"))
	f.Fuzz(func(t *testing.T, head, text []byte) {
		d := &sectors{data: map[int64][]byte{}}
		_, _ = d.WriteAt(head, slotOffsets[0])
		_, _ = d.WriteAt(text, slotOffsets[0]+slotHeader)
		whole, err := readSlots(d)
		if err == nil || len(whole) > 1 {
			t.Errorf("%v, %v", whole, err)
		}
	})
}

// A thin device is read from the data device as the kernel would: in pieces, zeros where nothing is mapped.
func TestThinReader(t *testing.T) {
	const block = 64 << 10
	data := make([]byte, 8*block)
	for i := range data {
		data[i] = byte(1 + i/block)
	}
	r := &thinReader{data: bytes.NewReader(data), block: block, runs: []thinmeta.Mapping{
		{Begin: 1, Data: 5, Length: 2}, {Begin: 3, Data: 0, Length: 1}, {Begin: 9, Data: 7, Length: 1},
	}}
	want := make([]byte, 12*block)
	for to, from := range map[int]int{1: 5, 2: 6, 3: 0, 9: 7} {
		copy(want[to*block:(to+1)*block], data[from*block:])
	}
	got := make([]byte, len(want))
	_, err := r.ReadAt(got, 0)
	must(t, err)
	if !bytes.Equal(got, want) {
		t.Error("read as a whole it differs")
	}
	for off := 0; off < len(want)-100; off += 4099 {
		b := make([]byte, min(3*block/2, len(want)-off))
		_, err := r.ReadAt(b, int64(off))
		must(t, err)
		if !bytes.Equal(b, want[off:off+len(b)]) {
			t.Fatalf("at %d it differs", off)
		}
	}
	r.runs = append(r.runs, thinmeta.Mapping{Begin: 20, Data: 100, Length: 1})
	if _, err := r.ReadAt(make([]byte, 10), 20*block); err == nil {
		t.Error("read beyond the data device")
	}
}
