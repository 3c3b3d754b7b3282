package leak

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestSince(t *testing.T) {
	before := Set{"mount /a": 1, "open file pipe": 2}
	now := Set{"mount /a": 1, "open file pipe": 5, "loop device loop1": 1, "mount /b": 0}
	want := []string{"loop device loop1", "open file pipe (3 times)"}
	if got := now.Since(before); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	if got := before.Since(now); len(got) != 0 {
		t.Errorf("what went away counts as a leak: %q", got)
	}
}

func TestOpenFileIsSeen(t *testing.T) {
	before := Process()
	path := filepath.Join(t.TempDir(), "file")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := Process().Since(before); !slices.Equal(got, []string{"open file " + path}) {
		t.Errorf("got %q", got)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if got := Process().Since(before); len(got) != 0 {
		t.Errorf("after the close: %q", got)
	}
}

// deviceList builds struct dm_name_list as the kernel does.
func deviceList(names ...string) []byte {
	var b []byte
	for i, n := range names {
		e := make([]byte, (12+len(n)+1+7)/8*8)
		binary.NativeEndian.PutUint64(e, uint64(0xfc00+i))
		if i < len(names)-1 {
			binary.NativeEndian.PutUint32(e[8:], uint32(len(e)))
		}
		copy(e[12:], n)
		b = append(b, e...)
	}
	return b
}

func TestParseDeviceList(t *testing.T) {
	for _, names := range [][]string{{"one"}, {"one", "two-two", "x"}, {strings.Repeat("n", 127)}} {
		if got := parseDeviceList(deviceList(names...)); !slices.Equal(got, names) {
			t.Errorf("got %q, want %q", got, names)
		}
	}
	if got := parseDeviceList(make([]byte, 16)); got != nil {
		t.Errorf("empty list: got %q", got)
	}
}

func FuzzParseDeviceList(f *testing.F) {
	f.Add([]byte{})
	f.Add(deviceList("a"))
	f.Add(deviceList("a", "b"))
	f.Add(deviceList("a", "b")[:20])
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, name := range parseDeviceList(data) {
			if strings.ContainsRune(name, 0) {
				t.Errorf("name with a zero byte: %q", name)
			}
		}
	})
}
