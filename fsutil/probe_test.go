package fsutil

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

const probeSize = 8 << 20

func probeBytes(t *testing.T, b []byte) []Signature {
	t.Helper()
	found, err := ProbeReader(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// only fails unless exactly the one signature is found.
func only(t *testing.T, found []Signature, want Signature) {
	t.Helper()
	if len(found) != 1 || found[0] != want {
		t.Errorf("found %+v, want %+v", found, want)
	}
}

func TestProbeBlank(t *testing.T) {
	for _, size := range []int{0, 1, 511, 512, 4096, 65536, 1 << 20, probeSize} {
		if found := probeBytes(t, make([]byte, size)); len(found) != 0 {
			t.Errorf("%d zeros are %v", size, found)
		}
	}
	noise := make([]byte, probeSize)
	rand.New(rand.NewSource(1)).Read(noise)
	if found := probeBytes(t, noise); len(found) != 0 {
		t.Errorf("noise is %v", found)
	}
}

// Each magic of the table is found alone, at its place.
func TestProbeMagics(t *testing.T) {
	for _, m := range magics {
		b := make([]byte, probeSize)
		copy(b[m.off:], m.bytes)
		found := probeBytes(t, b)
		if len(found) == 0 || found[0].Type != m.name || found[0].Offset != m.off {
			t.Errorf("%s at %d: found %v", m.name, m.off, found)
		}
	}
}

func TestProbeStructures(t *testing.T) {
	uuid := []byte("\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f\x10")
	const uuidText = "01020304-0506-0708-090a-0b0c0d0e0f10"
	for _, tc := range []struct {
		want  Signature
		build func(b []byte)
	}{
		{Signature{Type: "xfs", UUID: uuidText, Label: "data"}, func(b []byte) {
			copy(b, "XFSB")
			copy(b[32:], uuid)
			copy(b[108:], "data")
		}},
		{Signature{Type: "lvm2", Offset: 512, UUID: "abcdefghijklmnopqrstuvwxyz012345"}, func(b []byte) {
			copy(b[512:], "LABELONE")
			copy(b[512+24:], "LVM2 001abcdefghijklmnopqrstuvwxyz012345")
		}},
		{Signature{Type: "lvm", Offset: 1536}, func(b []byte) { copy(b[1536:], "LABELONE") }},
		{Signature{Type: "gpt", Offset: 512, UUID: "04030201-0605-0807-090a-0b0c0d0e0f10"}, func(b []byte) {
			copy(b[512:], "EFI PART")
			copy(b[512+56:], uuid)
		}},
		{Signature{Type: "gpt", Offset: probeSize - 512, UUID: "00000000-0000-0000-0000-000000000000"}, func(b []byte) { copy(b[probeSize-512:], "EFI PART") }},
		{Signature{Type: "gpt", Offset: probeSize - 4096, UUID: "00000000-0000-0000-0000-000000000000"}, func(b []byte) { copy(b[probeSize-4096:], "EFI PART") }},
		{Signature{Type: "dos", Offset: 510}, func(b []byte) { copy(b[510:], "\x55\xaa") }},
		{Signature{Type: "vfat", Offset: 54, Label: "BOOT"}, func(b []byte) {
			copy(b[71:], "BOOT       FAT32   ")
			copy(b[510:], "\x55\xaa")
		}},
		{Signature{Type: "vfat", Offset: 54, Label: "SMALL"}, func(b []byte) { copy(b[43:], "SMALL      FAT16   ") }},
		{Signature{Type: "ntfs", Offset: 3}, func(b []byte) {
			copy(b[3:], "NTFS    ")
			copy(b[510:], "\x55\xaa")
		}},
		{Signature{Type: "swap", Offset: 4086, UUID: uuidText, Label: "sw"}, func(b []byte) {
			copy(b[4086:], "SWAPSPACE2")
			copy(b[1024+12:], uuid)
			copy(b[1024+28:], "sw")
		}},
		{Signature{Type: "swap", Offset: 65526, UUID: "00000000-0000-0000-0000-000000000000"}, func(b []byte) { copy(b[65526:], "SWAPSPACE2") }},
		{Signature{Type: "hibernation", Offset: 4086}, func(b []byte) { copy(b[4086:], "S1SUSPEND") }},
		{Signature{Type: "md-raid", Offset: 4096, UUID: uuidText, Label: "host:0"}, func(b []byte) {
			copy(b[4096:], "\xfc\x4e\x2b\xa9")
			copy(b[4096+16:], uuid)
			copy(b[4096+32:], "host:0")
		}},
		{Signature{Type: "md-raid", Offset: probeSize - 8192, UUID: "00000000-0000-0000-0000-000000000000"}, func(b []byte) { copy(b[probeSize-8192:], "\xfc\x4e\x2b\xa9") }},
		{Signature{Type: "md-raid", Offset: probeSize - 65536}, func(b []byte) { copy(b[probeSize-65536:], "\xa9\x2b\x4e\xfc") }},
		{Signature{Type: "zfs", Offset: 128<<10 + 3<<10}, func(b []byte) { copy(b[128<<10+3<<10:], "\x0c\xb1\xba\x00\x00\x00\x00\x00") }},
		{Signature{Type: "zfs", Offset: probeSize - 128<<10}, func(b []byte) { copy(b[probeSize-128<<10:], "\x00\x00\x00\x00\x00\xba\xb1\x0c") }},
		{Signature{Type: "isw-raid", Offset: probeSize - 1024}, func(b []byte) { copy(b[probeSize-1024:], "Intel Raid ISM Cfg Sig. ") }},
		{Signature{Type: "ddf-raid", Offset: probeSize - 512}, func(b []byte) { copy(b[probeSize-512:], "\xde\x11\xde\x11") }},
		{Signature{Type: "drbd", Offset: probeSize - 4096 + 60}, func(b []byte) { copy(b[probeSize-4096+60:], "\x83\x74\x02\x6d") }},
		{Signature{Type: "hfsplus", Offset: 1024}, func(b []byte) { copy(b[1024:], "H+\x00\x04") }},
		{Signature{Type: "nilfs2", Offset: 1030}, func(b []byte) { copy(b[1030:], "\x34\x34") }},
		{Signature{Type: "minix", Offset: 1040}, func(b []byte) {
			copy(b[1024:], "\x40\x00")
			copy(b[1040:], "\x8f\x13")
		}},
		{Signature{Type: "lvm1"}, func(b []byte) { copy(b, "HM\x01\x00") }},
	} {
		t.Run(tc.want.String(), func(t *testing.T) {
			b := make([]byte, probeSize)
			tc.build(b)
			only(t, probeBytes(t, b), tc.want)
		})
	}
}

func extSuperblock(compat, incompat, ro uint32) []byte {
	b := make([]byte, probeSize)
	sb := b[1024:]
	le := binary.LittleEndian
	le.PutUint16(sb[0x38:], ext4Magic)
	le.PutUint32(sb[0x4:], 2048)
	le.PutUint32(sb[0x18:], 2)
	le.PutUint32(sb[0x5c:], compat)
	le.PutUint32(sb[0x60:], incompat)
	le.PutUint32(sb[0x64:], ro)
	copy(sb[0x78:], "root\x1b")
	return b
}

func TestProbeExt(t *testing.T) {
	for _, tc := range []struct {
		compat, incompat, ro uint32
		name                 string
	}{
		{0, 0x2, 0x1, "ext2"},
		{0x4, 0x2, 0x1, "ext3"},
		{0x4, 0x2 | 0x40, 0x1, "ext4"},
		{0x4, 0x2, 0x400, "ext4"},
		{0x4, 0x8, 0, "jbd"},
	} {
		only(t, probeBytes(t, extSuperblock(tc.compat, tc.incompat, tc.ro)),
			Signature{Type: tc.name, Offset: 1080, Label: "root", UUID: "00000000-0000-0000-0000-000000000000"})
	}
}

// What cannot be read is an error and never "nothing found".
func TestProbeCannotTell(t *testing.T) {
	b := make([]byte, probeSize)
	for _, from := range []int64{0, 512, 4096, 65536, 256 << 10, probeSize - 65536, probeSize - 1} {
		found, err := ProbeReader(broken{bytes.NewReader(b), from}, probeSize)
		if !errors.Is(err, unix.EIO) || found != nil {
			t.Errorf("unreadable from %d on: %v, %v", from, found, err)
		}
	}
	if _, err := ProbeReader(bytes.NewReader(b[:4096]), probeSize); !errors.Is(err, errs.ErrDamaged) {
		t.Errorf("a device that is shorter than it says: %v", err)
	}
	if _, err := Probe(filepath.Join(t.TempDir(), "none")); !errors.Is(err, errs.ErrNotFound) {
		t.Errorf("no device: %v", err)
	}
	if _, err := Probe("/dev/null"); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a character device: %v", err)
	}
	if _, err := Probe(t.TempDir()); !errors.Is(err, errs.ErrInvalid) {
		t.Errorf("a directory: %v", err)
	}
}

func TestReadFS(t *testing.T) {
	b := extSuperblock(0x4, 0x2|ext4IncompatRecover|ext4Incompat64Bit, 0)
	binary.LittleEndian.PutUint32(b[1024+0x150:], 1)
	binary.LittleEndian.PutUint16(b[1024+0x3a:], ext4StateErrors)
	got, err := ReadFS(bytes.NewReader(b))
	want := FS{Type: Ext4, UUID: "00000000-0000-0000-0000-000000000000", Label: "root", BlockSize: 4096,
		Size: (1<<32 + 2048) * 4096, NeedsRecovery: true, HasErrors: true}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}

	x := make([]byte, 4096)
	copy(x, "XFSB")
	binary.BigEndian.PutUint32(x[4:], 4096)
	binary.BigEndian.PutUint64(x[8:], 100000)
	got, err = ReadFS(bytes.NewReader(x))
	want = FS{Type: XFS, UUID: "00000000-0000-0000-0000-000000000000", BlockSize: 4096, Size: 100000 * 4096, NeedsRecovery: true}
	if err != nil || got != want {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestReadFSRefuses(t *testing.T) {
	change := func(b []byte, off int, with string) []byte { copy(b[off:], with); return b }
	ext := func() []byte { return extSuperblock(0, 0, 0) }
	xfs := func() []byte {
		b := make([]byte, 4096)
		copy(b, "XFSB\x00\x00\x10\x00\x00\x00\x00\x00\x00\x01\x00\x00")
		return b
	}
	for name, tc := range map[string]struct {
		b     []byte
		class error
	}{
		"nothing":          {make([]byte, 4096), errs.ErrNotFound},
		"too short":        {make([]byte, 100), errs.ErrDamaged},
		"ext4 block size":  {change(ext(), 1024+0x18, "\x07"), errs.ErrDamaged},
		"ext4 no blocks":   {change(ext(), 1024+4, "\x00\x00\x00\x00"), errs.ErrDamaged},
		"ext4 too large":   {change(change(ext(), 1024+0x60, "\x80"), 1024+0x150, "\xff\xff\xff\xff"), errs.ErrDamaged},
		"external journal": {extSuperblock(0, ext4IncompatJournalDev, 0), errs.ErrNotFound},
		"xfs block size":   {change(xfs(), 4, "\x00\x00\x10\x01"), errs.ErrDamaged},
		"xfs too large":    {change(xfs(), 8, "\xff\xff\xff\xff\xff\xff\xff\xff"), errs.ErrDamaged},
		"xfs no blocks":    {change(xfs(), 8, "\x00\x00\x00\x00\x00\x00\x00\x00"), errs.ErrDamaged},
	} {
		if _, err := ReadFS(bytes.NewReader(tc.b)); errs.Class(err) != tc.class {
			t.Errorf("%s: %v", name, err)
		}
	}
	path := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(path, ext(), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := NeedsRecovery(path, XFS); !errors.Is(err, errs.ErrDamaged) || !strings.Contains(err.Error(), path) {
		t.Errorf("ext4 where xfs should be: %v", err)
	}
}

// patch is a device of zeros with some bytes at one place.
type patch struct {
	b    []byte
	at   int64
	size int64
}

func (p patch) ReadAt(buf []byte, off int64) (int, error) {
	n := int(max(0, min(int64(len(buf)), p.size-off)))
	clear(buf[:n])
	for i, b := range p.b {
		if j := p.at - off + int64(i); j >= 0 && j < int64(n) {
			buf[j] = b
		}
	}
	if n < len(buf) {
		return n, io.EOF
	}
	return n, nil
}

func FuzzProbe(f *testing.F) {
	for _, m := range magics {
		f.Add([]byte(m.bytes), m.off, int64(probeSize))
	}
	f.Add(extSuperblock(0x4, 0x2, 0)[1024:1200], int64(1024), int64(1<<20))
	f.Add([]byte("XFSB"), int64(0), int64(-5))
	f.Add([]byte("EFI PART"), int64(3584), int64(4096))
	f.Add([]byte("LABELONE"), int64(512), int64(700))
	f.Fuzz(func(t *testing.T, b []byte, at, size int64) {
		r := patch{b, at, size}
		found, err := ProbeReader(r, size)
		if err != nil {
			t.Fatalf("it can be read, and yet: %v", err)
		}
		for _, s := range found {
			if s.Offset < 0 || s.Offset >= size || s.Type == "" || strings.ContainsRune(s.Label, 0x1b) {
				t.Errorf("%+v in %d bytes", s, size)
			}
		}
		if fs, err := ReadFS(r); err == nil && (fs.Size == 0 || fs.BlockSize < 512 || fs.Size%uint64(fs.BlockSize) != 0) {
			t.Errorf("%+v", fs)
		}
		if size > 0 { // a device that ends before it says
			if found, err := ProbeReader(r, size+4096); err == nil && size > 512 && len(found) > 0 && found[0].Offset >= size {
				t.Errorf("%+v in %d bytes", found, size)
			}
		}
	})
}

func FuzzParseMountInfo(f *testing.F) {
	f.Add("22 27 0:20 / /sys rw,nosuid shared:7 - sysfs sysfs rw\n")
	f.Add(`36 35 254:3 /a\040b /mnt\134 ro master:1 - ext4 /dev/dm-3 ro` + "\n")
	f.Add(`1 2 3:4 / \777\9 rw -   `)
	f.Add("\n \n")
	f.Fuzz(func(t *testing.T, text string) {
		mounts, err := ParseMountInfo(strings.NewReader(text))
		if err != nil {
			return
		}
		for _, m := range mounts {
			_ = m.ReadOnly()
		}
		if n := strings.Count(text, "\n") + 1; len(mounts) > n {
			t.Errorf("%d mounts in %d lines", len(mounts), n)
		}
	})
}

func FuzzParseOptions(f *testing.F) {
	f.Add("ro,nosuid,data=ordered")
	f.Add(`context="a,b`)
	f.Add(",,noatime,relatime")
	f.Fuzz(func(t *testing.T, text string) {
		p, err := ParseOptions(text)
		if err != nil {
			return
		}
		for _, o := range p.Data {
			if o == "" || strings.ContainsRune(o, 0) {
				t.Errorf("option %q", o)
			}
			if _, ok := generic[o]; ok {
				t.Errorf("generic option %q went to the file system", o)
			}
		}
	})
}
