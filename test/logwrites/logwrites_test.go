package logwrites_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/dmlayer/dmlayer/test/logwrites"
)

// build makes a log as the kernel does, with sectors of 512 bytes.
func build(entries ...[]byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 512)
	le.PutUint64(b, 0x6a736677736872)
	le.PutUint64(b[8:], 1)
	le.PutUint64(b[16:], uint64(len(entries)))
	le.PutUint32(b[24:], 512)
	return append(b, bytes.Join(entries, nil)...)
}

func entry(sector, sectors, flags uint64, mark string, data []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 512)
	le.PutUint64(b, sector)
	le.PutUint64(b[8:], sectors)
	le.PutUint64(b[16:], flags)
	le.PutUint64(b[24:], uint64(len(mark)))
	copy(b[32:], mark)
	return append(b, data...)
}

type disk []byte

func (d disk) WriteAt(p []byte, at int64) (int, error) { return copy(d[at:], p), nil }

func (d disk) Discard(at, n int64) error { clear(d[at : at+n]); return nil }

func TestPlay(t *testing.T) {
	fill := func(c byte, sectors int) []byte { return bytes.Repeat([]byte{c}, 512*sectors) }
	l, err := logwrites.Read(bytes.NewReader(build(
		entry(2, 2, 0, "", fill('a', 2)),
		entry(0, 0, logwrites.Flush, "", nil),
		entry(0, 0, logwrites.Mark, "one", nil),
		entry(3, 1, logwrites.FUA, "", fill('b', 1)),
		entry(2, 1, logwrites.Discard, "", nil),
		entry(0, 0, logwrites.Mark, "two", nil),
	)))
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Entries) != 6 || l.Entries[2].Mark != "one" || l.Entries[5].Mark != "two" || l.Entries[3].Flags != logwrites.FUA {
		t.Fatalf("entries %+v", l.Entries)
	}
	for to, want := range []string{"....", "..aa", "..aa", "..aa", "..ab", "...b", "...b"} {
		d := disk(fill('.', 4))
		clear(d[:0])
		if err := l.Play(d, 0, to); err != nil {
			t.Fatal(err)
		}
		var have []byte
		for i := 0; i < len(d); i += 512 {
			if d[i] == 0 {
				d[i] = '.'
			}
			have = append(have, d[i])
		}
		if string(have) != want {
			t.Errorf("up to %d: %s, want %s", to, have, want)
		}
	}
}

func TestNotALog(t *testing.T) {
	for what, b := range map[string][]byte{
		"empty":         nil,
		"zeros":         make([]byte, 1024),
		"cut short":     build(entry(0, 0, 0, "", nil))[:600],
		"sector size":   func() []byte { b := build(); b[24] = 7; return b }(),
		"huge entry":    build(entry(0, 1<<40, 0, "", nil)),
		"overlong mark": func() []byte { b := entry(0, 0, logwrites.Mark, "", nil); b[25] = 0xff; return build(b) }(),
	} {
		if l, err := logwrites.Read(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: %+v", what, l.Entries)
		}
	}
	if _, err := logwrites.Read(bytes.NewReader(make([]byte, 1024))); !errors.Is(err, logwrites.ErrFormat) {
		t.Errorf("zeros: %v", err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(build(entry(2, 1, 0, "", make([]byte, 512)), entry(0, 0, logwrites.Mark, "m", nil)))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := logwrites.Read(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, e := range l.Entries {
			if len(e.Mark) > 512 {
				t.Errorf("mark of %d bytes", len(e.Mark))
			}
		}
	})
}
