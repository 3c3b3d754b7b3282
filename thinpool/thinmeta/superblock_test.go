package thinmeta

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// superblockOf is what the kernel would write.
func superblockOf(s Superblock) []byte {
	b := make([]byte, BlockSize)
	le := binary.LittleEndian
	le.PutUint32(b[4:], s.Flags)
	le.PutUint64(b[8:], s.Block)
	copy(b[16:], s.UUID[:])
	le.PutUint64(b[32:], 27022010)
	le.PutUint32(b[40:], s.Version)
	le.PutUint32(b[44:], s.Time)
	le.PutUint64(b[48:], s.TransactionID)
	le.PutUint64(b[56:], s.HeldRoot)
	for i, r := range []SpaceMapRoot{s.DataSpace, s.MetadataSpace} {
		at := b[64+128*i:]
		le.PutUint64(at, r.Blocks)
		le.PutUint64(at[8:], r.Allocated)
		le.PutUint64(at[16:], r.BitmapRoot)
		le.PutUint64(at[24:], r.RefCountRoot)
	}
	le.PutUint64(b[320:], s.MappingRoot)
	le.PutUint64(b[328:], s.DetailsRoot)
	le.PutUint32(b[336:], s.DataBlockSize)
	le.PutUint32(b[340:], s.MetadataBlockSize)
	le.PutUint64(b[344:], s.MetadataBlocksAtFormat)
	le.PutUint32(b[352:], s.Compat)
	le.PutUint32(b[356:], s.CompatReadOnly)
	le.PutUint32(b[360:], s.Incompat)
	le.PutUint32(b, checksum(b, superblockSalt))
	return b
}

var full = Superblock{
	Flags: 1, NeedsCheck: true, UUID: [16]byte{1, 2, 3}, Version: 2, Time: 1 << 24, TransactionID: 1 << 60, HeldRoot: 77,
	DataSpace: SpaceMapRoot{1, 2, 3, 4}, MetadataSpace: SpaceMapRoot{5, 6, 7, 8}, MappingRoot: 9, DetailsRoot: 10,
	DataBlockSize: 128, MetadataBlockSize: 8, MetadataBlocksAtFormat: 2048, Compat: 1, CompatReadOnly: 2,
}

func TestSuperblock(t *testing.T) {
	got, err := ReadSuperblock(bytes.NewReader(superblockOf(full)))
	if err != nil || got != full {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, full)
	}
	held := full
	held.Block, held.Flags, held.NeedsCheck = 3, 0, false
	device := append(make([]byte, 3*BlockSize), superblockOf(held)...)
	if got, err := ReadSuperblockAt(bytes.NewReader(device), 3); err != nil || got != held {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, held)
	}
}

// TestKernelSuperblock reads what Linux 6.1 wrote; see testdata/record.sh.
func TestKernelSuperblock(t *testing.T) {
	f, err := os.Open(filepath.Join("testdata", "superblock.bin"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got, err := ReadSuperblock(f)
	want := Superblock{
		Version: 2, Time: 1, TransactionID: 42,
		DataSpace:     SpaceMapRoot{Blocks: 1024, Allocated: 2, BitmapRoot: got.DataSpace.BitmapRoot, RefCountRoot: got.DataSpace.RefCountRoot},
		MetadataSpace: SpaceMapRoot{Blocks: 2048, Allocated: got.MetadataSpace.Allocated, BitmapRoot: got.MetadataSpace.BitmapRoot, RefCountRoot: got.MetadataSpace.RefCountRoot},
		MappingRoot:   got.MappingRoot, DetailsRoot: got.DetailsRoot,
		DataBlockSize: 128, MetadataBlockSize: 8, MetadataBlocksAtFormat: 2048,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	for what, block := range map[string]uint64{
		"data bitmap": got.DataSpace.BitmapRoot, "data ref counts": got.DataSpace.RefCountRoot, "metadata bitmap": got.MetadataSpace.BitmapRoot,
		"metadata ref counts": got.MetadataSpace.RefCountRoot, "mappings": got.MappingRoot, "details": got.DetailsRoot,
	} {
		if block == 0 || block >= got.MetadataSpace.Blocks {
			t.Errorf("root of the %s is block %d", what, block)
		}
	}
	if n := got.MetadataSpace.Allocated; n < 8 || n > 100 {
		t.Errorf("%d metadata blocks are in use", n)
	}
}

func TestBadSuperblock(t *testing.T) {
	change := func(f func(s *Superblock)) []byte {
		s := full
		f(&s)
		return superblockOf(s)
	}
	poke := func(at int) []byte {
		b := superblockOf(full)
		b[at] ^= 1
		return b
	}
	for what, tt := range map[string]struct {
		device []byte
		want   error
	}{
		"blank":            {make([]byte, 2*BlockSize), ErrBlank},
		"blank and then":   {append(make([]byte, BlockSize), superblockOf(full)...), ErrBlank},
		"nothing":          {nil, ErrNotThin},
		"short":            {superblockOf(full)[:BlockSize-1], ErrNotThin},
		"short blank":      {make([]byte, 512), ErrNotThin},
		"ext4":             {append(append(make([]byte, 1080), 0x53, 0xef), make([]byte, 4096)...), ErrNotThin},
		"magic":            {poke(32), ErrNotThin},
		"checksum":         {poke(0), ErrChecksum},
		"flags":            {poke(4), ErrChecksum},
		"last byte":        {poke(BlockSize - 1), ErrChecksum},
		"elsewhere":        {change(func(s *Superblock) { s.Block = 7 }), ErrChecksum},
		"version 0":        {change(func(s *Superblock) { s.Version = 0 }), ErrNotThin},
		"version 3":        {change(func(s *Superblock) { s.Version = 3 }), ErrNotThin},
		"unknown features": {change(func(s *Superblock) { s.Incompat = 1 }), ErrNotThin},
		"metadata blocks":  {change(func(s *Superblock) { s.MetadataBlockSize = 16 }), ErrNotThin},
		"no data blocks":   {change(func(s *Superblock) { s.DataBlockSize = 0 }), ErrNotThin},
	} {
		got, err := ReadSuperblock(bytes.NewReader(tt.device))
		for _, class := range []error{ErrBlank, ErrNotThin, ErrChecksum} {
			if errors.Is(err, class) != (class == tt.want) {
				t.Errorf("%s: %v, want %q", what, err, tt.want)
			}
		}
		if got != (Superblock{}) {
			t.Errorf("%s: an error and %+v", what, got)
		}
	}
	if _, err := ReadSuperblockAt(bytes.NewReader(superblockOf(full)), 1<<63); !errors.Is(err, ErrNotThin) {
		t.Errorf("out of range: %v", err)
	}
}

type brokenDisk struct{}

func (brokenDisk) ReadAt([]byte, int64) (int, error) { return 0, os.ErrDeadlineExceeded }

// wholeRead returns io.EOF with the last bytes, which io.ReaderAt may.
type wholeRead []byte

func (w wholeRead) ReadAt(b []byte, _ int64) (int, error) { return copy(b, w), io.EOF }

func TestSuperblockReader(t *testing.T) {
	if _, err := ReadSuperblock(brokenDisk{}); !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrNotThin) {
		t.Errorf("broken disk: %v", err)
	}
	if got, err := ReadSuperblock(wholeRead(superblockOf(full))); err != nil || got != full {
		t.Errorf("%+v, %v", got, err)
	}
}

func FuzzSuperblock(f *testing.F) {
	f.Add(superblockOf(full)[:364], uint64(0), true) // the rest is zero
	f.Add(superblockOf(full)[:364], uint64(0), false)
	f.Add([]byte{}, uint64(1<<63), false)
	f.Fuzz(func(t *testing.T, b []byte, block uint64, sum bool) {
		b = append(bytes.Clone(b), make([]byte, BlockSize)...)[:BlockSize]
		if sum { // get past the checksum
			le := binary.LittleEndian
			le.PutUint64(b[8:], block)
			le.PutUint64(b[32:], superblockMagic)
			le.PutUint32(b, checksum(b, superblockSalt))
		}
		s, err := ParseSuperblock(b, block)
		if err != nil {
			if !errors.Is(err, ErrBlank) && !errors.Is(err, ErrNotThin) && !errors.Is(err, ErrChecksum) || s != (Superblock{}) {
				t.Fatalf("%+v, %v", s, err)
			}
			return
		}
		again, err := ParseSuperblock(superblockOf(s), block)
		if err != nil || again != s {
			t.Fatalf("%+v comes back as %+v, %v", s, again, err)
		}
		_, _ = ReadSuperblockAt(bytes.NewReader(b), block)
	})
}
