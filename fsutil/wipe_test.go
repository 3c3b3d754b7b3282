package fsutil

import (
	"bytes"
	"errors"
	"io"
	"testing"
)

// What SignatureRanges names is enough for nothing to be found, and no more than blocks with something in them.
func TestSignatureRanges(t *testing.T) {
	put := func(b []byte, off int64, text string) { copy(b[off:], text) }
	full := make([]byte, probeSize+512) // the last block is not whole
	for _, m := range magics {
		if m.name != "xfs-log" {
			put(full, m.off, m.bytes)
		}
	}
	put(full, 510, "\x55\xaa")
	put(full, 512, "EFI PART")
	put(full, int64(len(full))-512, "EFI PART")
	put(full, 4086, "SWAPSPACE2")
	for off := int64(128 << 10); off < 256<<10; off += 1024 {
		put(full, off, "\x0c\xb1\xba\x00\x00\x00\x00\x00")
	}
	for name, b := range map[string][]byte{
		"blank": make([]byte, probeSize), "everything": full, "short": append(make([]byte, 510), 0x55, 0xaa),
	} {
		ranges, err := SignatureRanges(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if (name == "blank") != (len(ranges) == 0) {
			t.Errorf("%s: %v", name, ranges)
		}
		last := int64(-1)
		for _, r := range ranges {
			if r.Offset%wipeUnit != 0 || r.Offset <= last || r.End() > int64(len(b)) || r.Length == 0 {
				t.Errorf("%s: range %+v after %d", name, r, last)
			}
			last = r.End()
			if err := Zero(sliceWriter(b), r); err != nil {
				t.Fatal(err)
			}
		}
		if found := probeBytes(t, b); len(found) != 0 {
			t.Errorf("%s: %v is left", name, found)
		}
	}
	broken := errors.New("broken")
	if _, err := SignatureRanges(failingReader{broken}, 1<<20); !errors.Is(err, broken) {
		t.Errorf("a disk that cannot be read: %v", err)
	}
}

type failingReader struct{ err error }

func (r failingReader) ReadAt([]byte, int64) (int, error) { return 0, r.err }

type sliceWriter []byte

func (s sliceWriter) WriteAt(b []byte, off int64) (int, error) {
	if off+int64(len(b)) > int64(len(s)) {
		return 0, io.ErrShortWrite
	}
	return copy(s[off:], b), nil
}

func TestMergeRanges(t *testing.T) {
	got := MergeRanges([]Range{{8192, 4096}, {0, 4096}, {4096, 100}, {8300, 10}, {20000, 1}})
	want := []Range{{0, 4196}, {8192, 4096}, {20000, 1}}
	if len(got) != len(want) {
		t.Fatalf("%v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got, want)
		}
	}
}
