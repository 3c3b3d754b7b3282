package pool

import (
	"math"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// What is said of a device that is still there. The pool's own count of its blocks may be wrong, and takes no loss away.
func TestLossIn(t *testing.T) {
	lost := []thinmeta.Range{{First: 252, Last: 503}, {First: 1000, Last: math.MaxUint64}}
	for _, tc := range []struct {
		about string
		d     thinmeta.RepairedDevice
		want  string
		whole bool
	}{
		{about: "whole", d: thinmeta.RepairedDevice{Mapped: 700, Had: 700}, whole: true},
		{about: "a count that is too high, and nothing lost", d: thinmeta.RepairedDevice{Mapped: 700, Had: 701}, whole: true},
		{about: "counted", d: thinmeta.RepairedDevice{Mapped: 700, Had: 900, Lost: lost}, want: "x: 200 of 900 blocks, in blocks 252 to 503, 1000 to the end"},
		{about: "a count that is too low", d: thinmeta.RepairedDevice{Mapped: 700, Had: 600, Lost: lost}, want: "x: some of it, in blocks 252 to 503, 1000 to the end"},
		{about: "a count that leaves nothing for a range", d: thinmeta.RepairedDevice{Mapped: 700, Had: 701, Lost: lost}, want: "x: some of it, in blocks 252 to 503, 1000 to the end"},
		{about: "no count", d: thinmeta.RepairedDevice{Mapped: 700, Remade: true, Lost: lost[:1]}, want: "x: some of it, in blocks 252 to 503"},
		{about: "whole, if it is its own", d: thinmeta.RepairedDevice{Mapped: 700, Had: 700, Unproven: true}, want: "x: nothing, if what is found is its own, which is likely and cannot be proven"},
		{about: "no count, and whole", d: thinmeta.RepairedDevice{Mapped: 700, Remade: true}, whole: true},
	} {
		l := lossIn(5, tc.d)
		l.Object = "x"
		if whole := l.Blocks == 0 && l.Where == "" && !l.Unproven; whole != tc.whole || !whole && l.String() != tc.want {
			t.Errorf("%s: %q, %+v", tc.about, l, l)
		}
	}
}
