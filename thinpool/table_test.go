package thinpool_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	metaDev = devmapper.DevNum{Major: 7, Minor: 0}
	dataDev = devmapper.DevNum{Major: 7, Minor: 1}
	poolDev = devmapper.DevNum{Major: 254, Minor: 0}
)

func TestPoolTable(t *testing.T) {
	for text, want := range map[string]thinpool.PoolTable{
		"7:0 7:1 128 0 0":                        {BlockSize: 128},
		"7:0 7:1 2097152 18446744073709551615 0": {BlockSize: 2097152, LowWater: 1<<64 - 1},
		"7:0 7:1 384 5 1 skip_block_zeroing":     {BlockSize: 384, LowWater: 5, SkipBlockZeroing: true},
		"7:0 7:1 128 5 1 ignore_discard":         {BlockSize: 128, LowWater: 5, IgnoreDiscard: true},
		"7:0 7:1 128 5 1 no_discard_passdown":    {BlockSize: 128, LowWater: 5, NoDiscardPassdown: true},
		"7:0 7:1 128 5 1 read_only":              {BlockSize: 128, LowWater: 5, ReadOnly: true},
		"7:0 7:1 128 5 1 error_if_no_space":      {BlockSize: 128, LowWater: 5, ErrorIfNoSpace: true},
		"7:0 7:1 128 5 4 skip_block_zeroing no_discard_passdown read_only error_if_no_space": {
			BlockSize: 128, LowWater: 5, SkipBlockZeroing: true, NoDiscardPassdown: true, ReadOnly: true, ErrorIfNoSpace: true},
	} {
		want.Metadata, want.Data = metaDev, dataDev
		for _, text := range []string{text, text + " "} { // the kernel prints a blank at the end
			got, err := thinpool.ParsePoolTable(text)
			if err != nil || got != want {
				t.Errorf("%q: %+v, %v", text, got, err)
			}
		}
		if want.String() != text {
			t.Errorf("prints %q, want %q", want, text)
		}
		if err := want.Check(); err != nil {
			t.Error(err)
		}
	}
	if got, err := thinpool.ParsePoolTable("7:0 7:1 128 3"); err != nil || got.LowWater != 3 {
		t.Errorf("without features: %+v, %v", got, err)
	}
	target := thinpool.PoolTable{Metadata: metaDev, Data: dataDev, BlockSize: 128}.Target(4096)
	if want := (devmapper.Target{Length: 4096, Type: "thin-pool", Params: "7:0 7:1 128 0 0"}); target != want {
		t.Errorf("target %+v, want %+v", target, want)
	}
}

func TestBadPoolTable(t *testing.T) {
	for text, field := range map[string]string{
		"":                           "field 1 (metadata device) is missing",
		"7:0 7:1 128":                "field 4 (low water mark) is missing",
		"/dev/loop0 7:1 128 0":       `field 1 (metadata device): unexpected "/dev/loop0"`,
		"7:0 x 128 0":                `field 2 (data device): unexpected "x"`,
		"7:0 7:1 -1 0":               `field 3 (block size): unexpected "-1"`,
		"7:0 7:1 128 x":              `field 4 (low water mark): unexpected "x"`,
		"7:0 7:1 128 0 9":            `field 5 (number of features): unexpected "9"`,
		"7:0 7:1 128 0 2 read_only":  "field 7 (feature) is missing",
		"7:0 7:1 128 0 1 frobnicate": `field 6 (feature): unexpected "frobnicate"`,
		"7:0 7:1 128 0 0 read_only":  `field 6 (nothing): unexpected "read_only"`,
		"7:0 7:0 128 0 0":            "as metadata and as data device",
		"7:0 7:1 127 0 0":            "block size of 127",
		"7:0 7:1 64 0 0":             "block size of 64",
		"7:0 7:1 2097280 0 0":        "block size of 2097280",
		"0:0 7:1 128 0 0":            "without a metadata or data device",
		"7:0 7:1 128 0 5 skip_block_zeroing ignore_discard no_discard_passdown read_only error_if_no_space": "5 features",
	} {
		got, err := thinpool.ParsePoolTable(text)
		if !errors.Is(err, thinpool.ErrInvalid) || !strings.Contains(err.Error(), field) || got != (thinpool.PoolTable{}) {
			t.Errorf("%q: %+v, %v; want %q", text, got, err, field)
		}
	}
}

func TestThinTable(t *testing.T) {
	origin := devmapper.DevNum{Major: 254, Minor: 9}
	for text, want := range map[string]thinpool.ThinTable{
		"254:0 0":        {Pool: poolDev},
		"254:0 16777215": {Pool: poolDev, ID: thinpool.MaxID},
		"254:0 5 254:9":  {Pool: poolDev, ID: 5, Origin: &origin},
	} {
		got, err := thinpool.ParseThinTable(text)
		if err != nil || got.String() != text || got.Pool != want.Pool || got.ID != want.ID || (got.Origin == nil) != (want.Origin == nil) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
		if want.String() != text {
			t.Errorf("prints %q, want %q", want, text)
		}
	}
	for _, bad := range []string{"", "254:0", "254:0 16777216", "254:0 0x5", "254:0 -1", "x 5", "0:0 5", "254:0 5 x", "254:0 5 254:9 x", "254:0 5 254:0"} {
		if got, err := thinpool.ParseThinTable(bad); !errors.Is(err, thinpool.ErrInvalid) {
			t.Errorf("%q: %+v, %v", bad, got, err)
		}
	}
}

func TestNewID(t *testing.T) {
	if id, err := thinpool.NewID(1<<24 - 1); err != nil || id != thinpool.MaxID {
		t.Errorf("%d, %v", id, err)
	}
	if id, err := thinpool.NewID(1 << 24); !errors.Is(err, thinpool.ErrInvalid) {
		t.Errorf("%d, %v", id, err)
	}
}

func TestMetadataSize(t *testing.T) {
	const mib, gib = 1 << 20, 1 << 30
	for _, tt := range []struct {
		data      uint64
		blockSize devmapper.Sectors
		want      uint64
	}{
		{0, 128, 4 * mib},
		{64 * mib, 128, 5 * mib},
		{100 * gib, 128, 154 * mib}, // 1638400 blocks: 150 MiB and 4
		{100 * gib, 1024, 23 * mib}, // 204800 blocks: 18.75 MiB and 4
		{100 * 1024 * gib, 128, thinpool.MaxMetadataSize},
		{1<<64 - 1, 128, thinpool.MaxMetadataSize},
		{100 * gib, 0, 154 * mib}, // no division by zero
	} {
		if got := thinpool.MetadataSize(tt.data, tt.blockSize); got != tt.want {
			t.Errorf("%d bytes in blocks of %d sectors: %d, want %d", tt.data, tt.blockSize, got, tt.want)
		}
	}
	if got, want := thinpool.MaxMetadataSize, devmapper.Sectors(33292800).Bytes(); got != want {
		t.Errorf("maximum %d, want the kernel's %d", got, want)
	}
}

func FuzzPoolTable(f *testing.F) {
	f.Add("7:0 7:1 128 0 0")
	f.Add("7:0 7:1 128 5 4 skip_block_zeroing no_discard_passdown read_only error_if_no_space")
	f.Add("7:0 7:1 128 5 2 read_only read_only")
	f.Add("7:0 7:1 128 5 9999999999")
	f.Fuzz(func(t *testing.T, s string) {
		table, err := thinpool.ParsePoolTable(s)
		if err != nil {
			if !errors.Is(err, thinpool.ErrInvalid) || table != (thinpool.PoolTable{}) {
				t.Fatalf("%+v, %v", table, err)
			}
			return
		}
		if again, err := thinpool.ParsePoolTable(table.String()); err != nil || again != table {
			t.Fatalf("%q is %+v, prints %q, which is %+v, %v", s, table, table, again, err)
		}
	})
}

func FuzzThinTable(f *testing.F) {
	f.Add("254:0 5")
	f.Add("254:0 5 254:9")
	f.Add("254:0 16777216")
	f.Fuzz(func(t *testing.T, s string) {
		table, err := thinpool.ParseThinTable(s)
		if err != nil {
			if !errors.Is(err, thinpool.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		if again, err := thinpool.ParseThinTable(table.String()); err != nil || again.String() != table.String() {
			t.Fatalf("%q prints %q, which is %q, %v", s, table, again, err)
		}
	})
}
