package pool

import (
	"math"
	"testing"
)

func TestPercent(t *testing.T) {
	for p := range uint64(101) {
		if got := percent(p, 100); got != int(p) {
			t.Errorf("%d of 100 is %d%%", p, got)
		}
	}
	if percent(math.MaxUint64, math.MaxUint64) != 100 || percent(math.MaxUint64-1, math.MaxUint64) != 99 || percent(7, 0) != 0 || percent(8, 4) != 100 {
		t.Error("large numbers, or none")
	}
}
