package pool

import (
	"errors"
	"math"
	"testing"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// The numbers of a superblock may be any: what they say is never found on media that are smaller.
func TestMediaShort(t *testing.T) {
	m := &media{data: &part{name: "data", size: 1 << 30}, metadata: &part{name: "metadata", size: 8 << 20}}
	for what, x := range map[string]struct {
		data, metadata uint64
		short          int
	}{
		"as large":  {1 << 14, 2048, 0},
		"one block": {1<<14 + 1, 2049, 2},
		"overflows": {1 << 48, 1 << 52, 2},
		"far":       {math.MaxUint64, math.MaxUint64, 2},
	} {
		super := thinmeta.Superblock{DataBlockSize: 128}
		super.DataSpace.Blocks, super.MetadataSpace.Blocks = x.data, x.metadata
		n := 0
		for _, err := range m.short(super) {
			if n++; !errors.Is(err, errs.ErrDamaged) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if n != x.short {
			t.Errorf("%s: %d of the media are short, want %d", what, n, x.short)
		}
		if held := heldWithin(1<<20, 8<<20, super); held < 0 || held > 1<<20 || x.metadata >= 2048 && held > 0 {
			t.Errorf("%s: %d bytes are held", what, held)
		}
	}
	if bytesOf(1<<52, 4096) != math.MaxInt64 || bytesOf(1<<50, 4096) != 1<<62 {
		t.Error("bytes of many blocks")
	}
}

// Records may come from anywhere: settings with which no pool can be made are refused.
func TestForeignSettings(t *testing.T) {
	spec, err := Spec{Name: "p"}.complete()
	must(t, err)
	good := metadata.Pool{FS: spec.FS, BaseSize: spec.BaseSize, BlockSize: spec.BlockSize, Discard: spec.Discard, Space: spec.Space}
	must(t, checkSettings(good))
	for what, change := range map[string]func(*metadata.Pool){
		"grow at -5":       func(p *metadata.Pool) { p.Space.GrowAt = -5 },
		"grow at 1000":     func(p *metadata.Pool) { p.Space.GrowAt = 1000 },
		"grow by too much": func(p *metadata.Pool) { p.Space.GrowBy = math.MaxInt64 },
		"file system":      func(p *metadata.Pool) { p.FS = "vfat" },
		"base size":        func(p *metadata.Pool) { p.BaseSize = math.MaxInt64 &^ 511 },
		"discard":          func(p *metadata.Pool) { p.Discard = "1 1 evil" },
		"data size":        func(p *metadata.Pool) { p.Backing.DataSize = math.MaxInt64 },
		"held":             func(p *metadata.Pool) { p.Backing.MetadataHeld = math.MaxInt64 },
	} {
		bad := good
		change(&bad)
		if err := checkSettings(bad); errs.Class(err) != errs.ErrDamaged {
			t.Errorf("%s: %v", what, err)
		}
	}
}
