package pool

import (
	"testing"

	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// What is taken at once is a small part of what is free, brings the pool to no percentage at which somebody acts, and fits into the metadata.
func TestTakable(t *testing.T) {
	const block, mib, gib = 64 << 10, 1 << 20, 1 << 30
	blocks := func(bytes uint64) uint64 { return bytes / block }
	for name, c := range map[string]struct {
		used, total, freeMetadata uint64
		mode                      thinpool.Mode
		space                     Space
		left                      int64
		want                      int64
	}{
		"large and empty":         {0, 100 * gib, 100000, thinpool.ModeReadWrite, Space{GrowAt: 80, MinFree: 10}, 100 * gib, 256 * mib},
		"an eighth":               {0, 80 * mib, 1000, thinpool.ModeReadWrite, Space{}, 80 * mib, 10 * mib},
		"little is left":          {0, 80 * mib, 1000, thinpool.ModeReadWrite, Space{}, 2 * mib, 2 * mib},
		"less than least":         {0, 80 * mib, 1000, thinpool.ModeReadWrite, Space{}, block, mib},
		"below the growth":        {700 * mib, 1000 * mib, 1000, thinpool.ModeReadWrite, Space{GrowAt: 72}, gib, 20*mib - block},
		"below min free":          {700 * mib, 1000 * mib, 1000, thinpool.ModeReadWrite, Space{MinFree: 28}, gib, 20*mib - block},
		"below a threshold":       {790 * mib, 1000 * mib, 1000, thinpool.ModeReadWrite, Space{}, gib, 10*mib - block},
		"just below one":          {800*mib - block, 1000 * mib, 1000, thinpool.ModeReadWrite, Space{}, gib, mib},
		"nearly full":             {993 * mib, 1000 * mib, 1000, thinpool.ModeReadWrite, Space{}, gib, 0},
		"full":                    {1000 * mib, 1000 * mib, 1000, thinpool.ModeOutOfDataSpace, Space{}, gib, 0},
		"read-only":               {0, 1000 * mib, 1000, thinpool.ModeReadOnly, Space{}, gib, 0},
		"little metadata":         {0, 100 * gib, 100, thinpool.ModeReadWrite, Space{}, 100 * gib, 64 * mib},
		"no metadata to speak of": {0, 100 * gib, 60, thinpool.ModeReadWrite, Space{}, 100 * gib, 0},
	} {
		s := &Session{p: &Pool{record: metadata.Pool{BlockSize: block}}}
		s.Status = thinpool.PoolStatus{Mode: c.mode, UsedData: blocks(c.used), TotalData: blocks(c.total), TotalMetadata: c.freeMetadata}
		if got := s.Takable(c.space, c.left); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
