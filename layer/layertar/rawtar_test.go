package layertar_test

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
)

// A raw is a header as no writer makes it. Its checksum is right.
type raw struct {
	name string
	typ  byte
	size string // the field as it is; see octal and base256
	gnu  bool   // the magic of GNU tar, not of POSIX
	at   map[int]string
	body string // follows, padded
}

func (r raw) bytes() []byte {
	var b [512]byte
	copy(b[:100], r.name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], octal(int64(len(r.body))))
	if r.size != "" {
		copy(b[124:136], r.size)
	}
	copy(b[136:], octal(0))
	copy(b[148:], "        ")
	b[156] = r.typ
	copy(b[257:], "ustar\x0000")
	if r.gnu {
		copy(b[257:], "ustar  \x00")
	}
	for at, text := range r.at {
		copy(b[at:], text)
	}
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	return slices.Concat(b[:], padded(r.body))
}

func padded(body string) []byte {
	return append([]byte(body), make([]byte, -len(body)&511)...)
}

// octal is a number of a header as it mostly is.
func octal(n int64) string { return fmt.Sprintf("%011o\x00", n) }

// base256 is a number of a header as GNU tar writes what is large.
func base256(n int64) string {
	var b [12]byte
	if n < 0 {
		copy(b[:], "\xff\xff\xff\xff")
	}
	binary.BigEndian.PutUint64(b[4:], uint64(n))
	b[0] |= 0x80
	return string(b[:])
}

// tarOf joins headers and ends the archive.
func tarOf(all ...raw) []byte {
	var b bytes.Buffer
	for _, r := range all {
		b.Write(r.bytes())
	}
	b.Write(make([]byte, 1024))
	return b.Bytes()
}

// pax makes a header of PAX records, keys and values in turn.
func pax(records ...string) raw {
	body := ""
	for i := 0; i < len(records); i += 2 {
		body += paxRecord(records[i], records[i+1])
	}
	return raw{name: "pax", typ: tar.TypeXHeader, body: body}
}

func paxRecord(key, value string) string {
	n := len(key) + len(value) + 3
	for len(fmt.Sprint(n))+len(key)+len(value)+3 != n {
		n = len(fmt.Sprint(n)) + len(key) + len(value) + 3
	}
	return fmt.Sprintf("%d %s=%s\n", n, key, value)
}

// The four forms of sparse files that GNU tar has had, of which only version 0.0 is like 0.1 for a reader.
// numbers are offsets and lengths in turn.

func sparseOld(realsize int64, data string, numbers ...int64) []byte {
	fields := func(numbers []int64) string {
		text := ""
		for _, n := range numbers {
			text += base256(n)
		}
		return text
	}
	head := numbers[:min(len(numbers), 8)]
	rest := numbers[len(head):]
	h := raw{name: "sparse", typ: tar.TypeGNUSparse, gnu: true, size: octal(int64(len(data))), at: map[int]string{
		386: fields(head), 483: base256(realsize),
	}}
	if len(rest) > 0 {
		h.at[482] = "\x01"
	}
	b := h.bytes()
	for len(rest) > 0 {
		part := rest[:min(len(rest), 42)]
		rest = rest[len(part):]
		block := padded(fields(part))
		if len(part) == 0 {
			block = make([]byte, 512)
		}
		if len(rest) > 0 {
			block[504] = 1
		}
		b = append(b, block...)
	}
	return slices.Concat(b, padded(data), make([]byte, 1024))
}

func sparsePAX01(realsize, mapText, data string) []byte {
	return tarOf(pax("GNU.sparse.size", realsize, "GNU.sparse.numblocks", fmt.Sprint((len(bytes.Split([]byte(mapText), []byte(","))))/2), "GNU.sparse.map", mapText),
		raw{name: "sparse", typ: tar.TypeReg, body: data})
}

func sparsePAX10(realsize, mapText, data string) []byte {
	return tarOf(pax("GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "sparse", "GNU.sparse.realsize", realsize),
		raw{name: "GNUSparseFile.0/sparse", typ: tar.TypeReg, body: string(padded(mapText)) + data})
}
