package pool

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/lvm"
	"github.com/dmlayer/dmlayer/metadata"
)

// What the data does not get is enough for the metadata, and for as much again.
func TestVolumesFit(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, c := range []struct {
		what               string
		spec               Spec
		extent, free       int64
		data, metadata     int64
		dataMin, leftAtEnd int64
	}{
		{what: "95%", extent: 4 * mib, free: 100 * gib, dataMin: 94 * gib, leftAtEnd: 4 * gib},
		{what: "percent", spec: Spec{DataPercent: 50}, extent: 4 * mib, free: 100 * gib, dataMin: 49 * gib, leftAtEnd: 49 * gib},
		{what: "100% leaves room for metadata", spec: Spec{DataPercent: 100}, extent: 4 * mib, free: 10 * gib, dataMin: 9 * gib, leftAtEnd: 19 * mib},
		{what: "sizes", spec: Spec{DataSize: 5*gib + 1, MetadataSize: 9 * mib}, extent: 4 * mib, free: 10 * gib, data: 5*gib + 4*mib, metadata: 12 * mib},
		{what: "large extents", extent: gib, free: 10 * gib, data: 8 * gib, metadata: gib, leftAtEnd: gib},
		{what: "odd free", extent: 4 * mib, free: 64*mib + 512, dataMin: 40 * mib, leftAtEnd: 4 * mib},
		{what: "most metadata", spec: Spec{MetadataSize: 15 * gib}, extent: 4 * gib, free: 1 << 40, metadata: 12 * gib, dataMin: 900 * gib},
	} {
		s := c.spec
		s.BlockSize = defaultBlockSize
		if err := s.fit(lvm.VG{Name: "vg", ExtentSize: c.extent, Free: c.free}); err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		left := c.free - s.DataSize - s.MetadataSize
		if c.data != 0 && s.DataSize != c.data || c.metadata != 0 && s.MetadataSize != c.metadata || s.DataSize < c.dataMin || left < c.leftAtEnd ||
			s.DataSize%c.extent != 0 || s.MetadataSize%c.extent != 0 {
			t.Errorf("%s: data %d, metadata %d, left %d", c.what, s.DataSize, s.MetadataSize, left)
		}
	}
	for what, s := range map[string]Spec{"nothing free": {}, "more than there is": {DataSize: 2 * gib}, "no room for metadata": {DataSize: gib}} {
		s.BlockSize = defaultBlockSize
		free := int64(gib)
		if what == "nothing free" {
			free = 4 * mib
		}
		if err := s.fit(lvm.VG{Name: "vg", ExtentSize: 4 * mib, Free: free}); !errors.Is(err, errs.ErrNoSpace) || errs.Hint(err) == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestVolumeNames(t *testing.T) {
	const uuid = "0123456789abcdef0123456789abcdef"
	if data, meta := volumeNames("vg", "my.pool", uuid); data != "dmlayer-my.pool-data" || meta != "dmlayer-my.pool-metadata" {
		t.Errorf("%s, %s", data, meta)
	}
	for _, pool := range []string{"x_tdata", "x_mlog_y", strings.Repeat("p", 128), strings.Repeat("p-", 40)} {
		if data, meta := volumeNames("vg", pool, uuid); data != "dmlayer-0123456789ab-data" || meta != "dmlayer-0123456789ab-metadata" {
			t.Errorf("%q: %s, %s", pool, data, meta)
		}
	}
}

func TestVolumesSpec(t *testing.T) {
	for what, s := range map[string]Spec{
		"neither":               {},
		"both":                  {VG: "vg", Device: "/dev/sdb"},
		"percent":               {VG: "vg", DataPercent: 101},
		"percent and size":      {VG: "vg", DataPercent: 50, DataSize: 1 << 30},
		"thin pool on a disk":   {Device: "/dev/sdb", ThinPool: "tp"},
		"thin pool with a size": {VG: "vg", ThinPool: "tp", DataSize: 1 << 30},
		"name of a group":       {VG: "v g"},
		"name of a thin pool":   {VG: "vg", ThinPool: "t/p"},
	} {
		s.Name, s.Backing = "p", BackingLVM
		if _, err := s.complete(); !errors.Is(err, errs.ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, err := (Spec{Name: "p", Backing: BackingLVM, VG: "vg"}).complete(); err != nil {
		t.Error(err)
	}
}

// Of whose volumes somebody has made a snapshot, a pool is not removed: lvm2 would remove that with them.
func TestVolumesWithSnapshots(t *testing.T) {
	h := holding{data: []lvm.LV{{Name: "data"}}, metadata: []lvm.LV{{Name: "metadata"}}, others: []lvm.LV{{Name: "other"}, {Name: "snap", Origin: "other"}}}
	must(t, h.unused())
	h.others = append(h.others, lvm.LV{Name: "mine", Origin: "metadata"})
	if err := h.unused(); !errors.Is(err, errs.ErrBusy) || !strings.Contains(err.Error(), "mine") {
		t.Error(err)
	}
}

// What lvm2 and a create may have left of a disk is told from what somebody else has put there.
func TestMayHave(t *testing.T) {
	v := volumes{p: &Pool{record: metadata.Pool{UUID: "0123456789abcdef0123456789abcdef"}}}
	label := func(uuid string) []byte {
		b := make([]byte, saveSector)
		copy(b, "LABELONE")
		copy(b[24:], "LVM2 001"+uuid)
		return b
	}
	head := append([]byte{1, 2, 3, 4}, headMagic...)
	zeros := make([]byte, saveSector)
	for what, x := range map[string]struct {
		offset int64
		sector []byte
		may    bool
	}{
		"zeros":            {5 << 20, zeros, true},
		"our label":        {labelSector, label(v.p.record.UUID), true},
		"another label":    {labelSector, label("0123456789abcdef0123456789abcdee"), false},
		"label elsewhere":  {1024, label(v.p.record.UUID), false},
		"head of metadata": {headSector, append(head, zeros...), true},
		"head elsewhere":   {8192, append(head, zeros...), false},
		"anything":         {4096, bytes.Repeat([]byte{9}, saveSector), false},
		"too short":        {labelSector, []byte("LABELONE"), false},
	} {
		if got := v.mayHave(x.offset, x.sector); got != x.may {
			t.Errorf("%s: %v", what, got)
		}
	}
}
