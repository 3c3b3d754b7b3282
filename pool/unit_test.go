package pool

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/lockfile"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestValidateName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "0": true, "web1": true, "A.b_c-d": true, strings.Repeat("x", 128): true,
		"": false, ".": false, "..": false, ".a": false, "-a": false, "_a": false, "a/b": false, "a b": false, "a\n": false,
		"a\x00": false, "ä": false, "a:b": false, "a%": false, strings.Repeat("x", 129): false,
	} {
		err := ValidateName("node", name)
		if ok && err != nil || !ok && !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestSpec(t *testing.T) {
	good := Spec{Name: "p"}
	full, err := good.complete()
	must(t, err)
	if full.FS != "ext4" || full.BaseSize != 10<<30 || full.DataSize != 100<<30 || full.BlockSize != 64<<10 || full.MetadataSize == 0 || full.Discard != "passdown" {
		t.Errorf("defaults: %+v", full)
	}
	if again, err := full.complete(); err != nil || again.MetadataSize != full.MetadataSize {
		t.Errorf("a complete spec: %+v, %v", again, err)
	}
	for what, change := range map[string]func(*Spec){
		"name":                func(s *Spec) { s.Name = "../p" },
		"backing":             func(s *Spec) { s.Backing = "cloud" },
		"file system":         func(s *Spec) { s.FS = "btrfs" },
		"discard":             func(s *Spec) { s.Discard = "sometimes" },
		"discarding ext4":     func(s *Spec) { s.MountOptions = []string{"noatime,discard"} },
		"small blocks":        func(s *Spec) { s.BlockSize = 32 << 10 },
		"odd blocks":          func(s *Spec) { s.BlockSize = 96 << 10 },
		"large blocks":        func(s *Spec) { s.BlockSize = 2 << 30 },
		"negative blocks":     func(s *Spec) { s.BlockSize = -64 << 10 },
		"small data":          func(s *Spec) { s.DataSize = 15 * 64 << 10 },
		"negative data":       func(s *Spec) { s.DataSize = -1 },
		"huge data":           func(s *Spec) { s.DataSize = 1<<60 + 1 },
		"small metadata":      func(s *Spec) { s.MetadataSize = 1 << 20 },
		"huge metadata":       func(s *Spec) { s.MetadataSize = 1 << 40 },
		"negative metadata":   func(s *Spec) { s.MetadataSize = -1 },
		"small base":          func(s *Spec) { s.BaseSize = 1 << 20 },
		"small base for xfs":  func(s *Spec) { s.FS, s.BaseSize = "xfs", 299<<20 },
		"odd base":            func(s *Spec) { s.BaseSize = 1<<30 + 1 },
		"negative base":       func(s *Spec) { s.BaseSize = -1 << 30 },
		"huge base":           func(s *Spec) { s.BaseSize = 1 << 61 },
		"a name that is none": func(s *Spec) { s.Name = "" },
	} {
		t.Run(what, func(t *testing.T) {
			s := good
			change(&s)
			if _, err := s.complete(); !errors.Is(err, errs.ErrInvalid) {
				t.Errorf("%+v: %v", s, err)
			}
		})
	}
}

// A part of the metadata is held back for deleting when the rest is full.
func TestHeldMetadata(t *testing.T) {
	for _, size := range []int64{4 << 20, 100 << 20, 1 << 30} {
		r, err := Spec{Name: "p", MetadataSize: size, DataSize: 1 << 30}.record(t.Context())
		must(t, err)
		held := r.Backing.MetadataHeld
		if held <= 0 || held > 8<<20 || held > size/20 || held%4096 != 0 {
			t.Errorf("of %d bytes %d are held", size, held)
		}
		if r.State != metadata.PoolCreating || len(r.UUID) != 32 || r.LowID != 1 || r.TransactionID&(1<<24-1) != 0 {
			t.Errorf("record %+v", r)
		}
	}
}

func testSession(t testing.TB) *Session {
	t.Helper()
	dir := t.TempDir()
	p := &Pool{files: files{dirs: Dirs{Root: filepath.Join(dir, "root"), Run: filepath.Join(dir, "run")}, name: "p"},
		record: metadata.Pool{Name: "p", UUID: "0123456789abcdef0123456789abcdef"}}
	must(t, makeDirs(p.files.dirs.Root))
	path, err := p.files.lock()
	must(t, err)
	must(t, makeDirs(p.StateDir(), filepath.Dir(path)))
	p.locks = lockfile.Open(path)
	h, err := p.locks.Holder(context.Background())
	must(t, err)
	t.Cleanup(func() { _ = h.Close() })
	return &Session{p: p, holder: h}
}

func TestCursor(t *testing.T) {
	s := testSession(t)
	if _, known, err := s.readCursor(); known || err != nil {
		t.Fatalf("without a file: %v, %v", known, err)
	}
	want := cursor{next: 70, high: 128}
	must(t, s.writeCursor(want))
	if c, known, err := s.readCursor(); !known || err != nil || c != want {
		t.Fatalf("got %v, %v, %v", c, known, err)
	}
	good, err := os.ReadFile(s.p.locks.Path())
	must(t, err)
	put := func(b []byte) {
		must(t, os.Truncate(s.p.locks.Path(), 0))
		_, err := s.holder.WriteAt(b, 0)
		must(t, err)
	}
	for i := range good[:cursorSize] { // of another boot or pool, or written halfway
		b := bytes.Clone(good)
		b[i] ^= 0x20
		put(b)
		if c, known, err := s.readCursor(); known || err != nil {
			t.Errorf("with byte %d changed: %v, %v, %v", i, c, known, err)
		}
	}
	for n := range cursorSize {
		put(good[:n])
		if _, known, err := s.readCursor(); known || err != nil {
			t.Errorf("with %d bytes: %v, %v", n, known, err)
		}
	}
}

// What may be in flight: up to the cursor where it is known, else the whole window.
func TestInFlight(t *testing.T) {
	s := testSession(t)
	record := metadata.Pool{LowID: 5, HighID: 64}
	for _, c := range []struct {
		cursor *cursor
		want   metadata.ThinID
	}{{nil, 64}, {&cursor{10, 64}, 10}, {&cursor{64, 64}, 64}, {&cursor{70, 128}, 64}} {
		if c.cursor != nil {
			must(t, s.writeCursor(*c.cursor))
		}
		low, high, err := s.InFlight(record)
		if err != nil || low != 5 || high != c.want {
			t.Errorf("%v: %d to %d, %v, want %d", c.cursor, low, high, err, c.want)
		}
	}
}

func TestLabelCodec(t *testing.T) {
	want := label{UUID: strings.Repeat("5e", 16), Settings: metadata.Pool{Name: "p", FS: "xfs", MkfsOptions: []string{"-K"}}}
	b, err := encodeLabel(want)
	must(t, err)
	if len(b)%4096 != 0 {
		t.Errorf("%d bytes: direct I/O wants blocks", len(b))
	}
	got, err := decodeLabel(bytes.NewReader(b))
	if err != nil || got.UUID != want.UUID || got.Settings.FS != "xfs" || len(got.Settings.MkfsOptions) != 1 {
		t.Fatalf("got %+v, %v", got, err)
	}
	used := bytes.TrimRight(b, "\x00")
	for i := range used {
		bad := bytes.Clone(b)
		bad[i] ^= 0x40
		if l, err := decodeLabel(bytes.NewReader(bad)); err == nil {
			t.Errorf("with byte %d changed: %+v", i, l)
		}
	}
	for n := range used {
		if l, err := decodeLabel(bytes.NewReader(b[:n])); err == nil {
			t.Errorf("with %d bytes: %+v", n, l)
		}
	}
	if _, err := decodeLabel(bytes.NewReader(make([]byte, 4096))); !errors.Is(err, errs.ErrDamaged) {
		t.Errorf("of zeros: %v", err)
	}
}

func FuzzDecodeLabel(f *testing.F) {
	b, err := encodeLabel(label{UUID: strings.Repeat("5e", 16)})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte(labelMagic + "\xff\xff\xff\xff"))
	f.Add([]byte(labelMagic + "\x00\x00\x10\x00"))
	f.Add(append([]byte(labelMagic+"\x02\x00\x00\x00{}"), binary.LittleEndian.AppendUint32(nil, crc32.Checksum([]byte("{}"), castagnoli))...))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLabel(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := encodeLabel(l)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeLabel(bytes.NewReader(again)); err != nil {
			t.Errorf("what was read cannot be written: %v", err)
		}
	})
}

func TestThinIDOfUUID(t *testing.T) {
	p := testSession(t).p
	if id, ok := p.ThinID(p.DeviceUUID(17)); !ok || id != 17 {
		t.Errorf("got %d, %v", id, ok)
	}
	for _, uuid := range []string{"", "DMLAYER-", "DMLAYER-" + p.UUID() + "-pool", "DMLAYER-" + p.UUID() + "-", "DMLAYER-" + p.UUID() + "--1",
		"DMLAYER-" + p.UUID() + "-16777216", "DMLAYER-0023456789abcdef0123456789abcdef-1", "LVM-x"} {
		if id, ok := p.ThinID(devmapper.UUID(uuid)); ok {
			t.Errorf("%q is thin id %d", uuid, id)
		}
	}
}

func TestListWithoutARoot(t *testing.T) {
	names, err := List(context.Background(), Dirs{Root: filepath.Join(t.TempDir(), "absent")})
	if err != nil || len(names) != 0 {
		t.Errorf("%v, %v", names, err)
	}
}

func TestLife(t *testing.T) {
	for _, tc := range []struct {
		taken, ids  uint64
		aged, spent bool
	}{
		{0, 1, false, false},
		{15_000_000, 15_000_000, false, false},
		{15_100_000, 1, true, false},
		{1, 15_100_000, true, false},
		{snapshotLimit - windowIDs, 1, true, false},
		{snapshotLimit - windowIDs + 1, 1, true, true},
		{1, idLimit, true, false},
		{1, idLimit + 1, true, true},
	} {
		l := lifeOf(metadata.Pool{HighID: metadata.ThinID(tc.ids)}, tc.taken)
		if l.Aged() != tc.aged || l.spent() != tc.spent {
			t.Errorf("%s: aged %v, spent %v", l, l.Aged(), l.spent())
		}
	}
	if idLimit+windowIDs > maxThinID {
		t.Error("the last window has ids that the kernel does not take")
	}
	if (Life{}).Aged() {
		t.Error("what is not known is old")
	}
}

// Of copies of the pool's tag the last transaction is the newest; of other tags, which are random, the store that came last, whatever the
// clock said.
func TestNewestCopy(t *testing.T) {
	now := time.Now()
	of := func(tag, count, version uint64, age time.Duration) candidate {
		return candidate{Copy: &metadata.Copy{Version: version, Taken: now.Add(-age), Pool: metadata.Pool{TransactionID: tag<<tagBits + count}}}
	}
	l := folder{super: thinmeta.Superblock{TransactionID: 5<<tagBits + 9}}
	want := []candidate{
		of(5, 9, 30, time.Hour), of(5, 8, 40, 0), of(5, 8, 39, 0),
		of(2, 1, 29, 3*time.Hour), of(2, 1, 29, 4*time.Hour), of(9, 1, 28, 0), of(1, 7, 27, time.Minute), of(7, 7, 26, 0),
	}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortStableFunc(got, l.newer)
	if !slices.Equal(got, want) {
		t.Errorf("got %v", got)
	}
}
