package devmapper

import (
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// goldenReplies are seeds.
func goldenReplies(f *testing.F) [][]byte {
	files, err := filepath.Glob("testdata/ioctl/*.txt")
	if err != nil || len(files) == 0 {
		f.Fatalf("no recordings: %v", err)
	}
	var replies [][]byte
	for _, file := range files {
		exchanges, err := parseGolden(file)
		if err != nil {
			f.Fatal(err)
		}
		for _, e := range exchanges {
			replies = append(replies, e.reply)
		}
	}
	return replies
}

// FuzzReply gives whatever bytes as the kernel's answer to every decoder.
func FuzzReply(f *testing.F) {
	for _, b := range goldenReplies(f) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeReply(b)
		if err != nil {
			if !errors.Is(err, ErrBadReply) {
				t.Fatalf("reply: %v", err)
			}
			return
		}
		r.info()
		checkDecoders(t, r.payload, r.targets)
	})
}

// FuzzPayload does the same without the header in the way.
func FuzzPayload(f *testing.F) {
	for _, b := range goldenReplies(f) {
		if r, err := decodeReply(b); err == nil {
			f.Add(r.payload, r.targets)
		}
	}
	f.Add(binary.NativeEndian.AppendUint64(nil, 1<<32-1), uint32(1<<32-1))
	f.Fuzz(checkDecoders)
}

func checkDecoders(t *testing.T, b []byte, targets uint32) {
	check := func(what string, n int, err error) {
		if err != nil && !errors.Is(err, ErrBadReply) {
			t.Fatalf("%s: %v", what, err)
		}
		if err != nil && n != 0 {
			t.Fatalf("%s: an error and %d results", what, n)
		}
		if n > len(b) {
			t.Fatalf("%s: %d results from %d bytes", what, n, len(b))
		}
	}
	lines, err := decodeTargets(b, targets)
	check("targets", len(lines), err)
	names, err := decodeNames(b)
	check("names", len(names), err)
	for _, e := range names {
		if strings.Contains(string(e.Name)+string(e.UUID), "\x00") {
			t.Fatalf("NUL in %+v", e)
		}
	}
	devs, err := decodeDeps(b)
	check("deps", len(devs), err)
	versions, err := decodeVersions(b)
	check("versions", len(versions), err)
}

func FuzzParseDevNum(f *testing.F) {
	for _, s := range []string{"7:1", "254:1048575", "4095:0", "a:b", ":", "1:2:3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDevNum(s)
		if err != nil {
			return
		}
		if again, err := ParseDevNum(d.String()); err != nil || again != d {
			t.Fatalf("%q is %s, which is %s, %v", s, d, again, err)
		}
		if back := DecodeDevNum(d.encode()); back != d {
			t.Fatalf("%s comes back as %s", d, back)
		}
	})
}

// FuzzEncodeTargets reads back what was written with a decoder that walks
// like the kernel's.
func FuzzEncodeTargets(f *testing.F) {
	f.Add("linear", "7:1 8", "zero", "", uint64(8), uint64(9))
	f.Add("thin-pool", "7:0 7:1 128 0", "", "\x00", uint64(0), uint64(1))
	f.Fuzz(func(t *testing.T, type1, params1, type2, params2 string, length1, length2 uint64) {
		in := []Target{{0, Sectors(length1), type1, params1}, {Sectors(length1), Sectors(length2), type2, params2}}
		b, err := encodeTargets(in)
		if err != nil {
			if !errors.Is(err, ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		for i, want := range in {
			next := nativeUint32(b[20:])
			got := Target{Sectors(nativeUint64(b)), Sectors(nativeUint64(b[8:])), cString(b[24:40]), cString(b[40:])}
			if got != want || next%8 != 0 || int(next) > len(b) {
				t.Fatalf("target %d: got %+v, next %d; want %+v", i, got, next, want)
			}
			b = b[next:]
		}
		if len(b) != 0 {
			t.Fatalf("%d bytes are left", len(b))
		}
	})
}
