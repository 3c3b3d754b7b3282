package pool

import (
	"fmt"
	"math/bits"
	"slices"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool"
)

// Thresholds are the parts in use, in percent of the data or of the metadata, at which whoever watches a pool is told.
var Thresholds = []int{80, 85, 90, 95, 100}

// metadataStep is how much metadata grows at least, in bytes.
const metadataStep = 1 << 20

// need is what a pool needs now: sizes in bytes of its backing, 0 for what is large enough, or cannot become larger: then the errors
// say why.
type need struct {
	data, metadata           int64
	dataStuck, metadataStuck error
}

func (n need) stuck() error {
	if n.metadataStuck != nil {
		return n.metadataStuck
	}
	return n.dataStuck
}

// planGrowth looks at a pool whose tables are as large as its devices.
func (s *Session) planGrowth(f *figures) need {
	var p need
	space, st, block := f.record.Space, f.status, s.p.record.BlockSize
	if space.GrowAt == 0 {
		return p
	}
	if used := percent(st.UsedMetadata, st.TotalMetadata); used >= space.GrowAt || st.FreeMetadata() <= st.MetadataLowWater {
		now := f.room.MetadataSize
		step := (max(now/100*int64(space.GrowBy), metadataStep) + metadataStep - 1) &^ (metadataStep - 1)
		p.metadata = min(now+step, f.room.MetadataMax, int64(thinpool.MaxMetadataSize)) &^ (thinpool.MetadataBlockSize - 1)
		if p.metadata-now < metadataStep { // what is left is not worth a growth, and the smaller part would be held back
			p.metadata = 0
			p.metadataStuck = s.stuck("metadata", used, now, f.room.MetadataMax, f.room.Free)
		}
	}
	if used := percent(st.UsedData, st.TotalData); used >= space.GrowAt {
		now := f.room.DataSize / block * block
		step := max(now/100*int64(space.GrowBy)/block*block, block)
		p.data = min(now+step, mostData(f)) / block * block
		if p.data <= now {
			p.data = 0
			p.dataStuck = s.stuck("data", used, now, mostData(f), f.room.Free)
		}
	}
	return p
}

// mostData is how large the data can become without anybody being asked.
func mostData(f *figures) int64 {
	if limit := f.record.Space.GrowLimit; limit > 0 {
		return min(limit, f.room.DataMax)
	}
	return f.room.DataMax
}

func (s *Session) stuck(what string, used int, now, most, free int64) error {
	err := fmt.Errorf("%d%% of the %s of pool %q is in use, and of its %s it can have %s at most: %w", used, what, s.p.files.name,
		inMiB(now), inMiB(max(now, most)), errs.ErrNoSpace)
	return errs.WithHint(err, s.p.roomHint(free))
}

// canGrow tells whether somebody who makes the pool larger when it is full could do so.
func (s *Session) canGrow(f *figures) bool {
	return f.record.Space.GrowAt > 0 && mostData(f) >= f.room.DataSize+s.p.record.BlockSize
}

// nextEvent is the part of the data in use at which there is something to do again, in percent: to grow, or to tell somebody.
func nextEvent(used, growAt int, growing bool) int {
	at := slices.Clone(Thresholds)
	if growing && growAt > 0 {
		at = append(at, growAt)
	}
	slices.Sort(at)
	for _, t := range at {
		if t > used {
			return t
		}
	}
	return 100
}

// percent is how much of a total is in use, rounded down: 100 is all of it.
func percent(used, total uint64) int {
	if total == 0 {
		return 0
	}
	high, low := bits.Mul64(min(used, total), 100)
	part, _ := bits.Div64(high, low, total)
	return int(part)
}
