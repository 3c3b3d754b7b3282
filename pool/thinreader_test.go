package pool

import (
	"bytes"
	"math"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Mappings of foreign metadata may lie anywhere: what is read before them is zeros, and each look comes to its end.
func TestThinReaderFarMappings(t *testing.T) {
	const block = 64 << 10
	data := bytes.Repeat([]byte{7}, 4*block)
	for _, far := range []uint64{4097, 1 << 20, 1 << 40, 1 << 47, 1 << 48, 1 << 63, math.MaxUint64 - 1} {
		r := &thinReader{data: bytes.NewReader(data), block: block, runs: []thinmeta.Mapping{
			{Begin: 0, Data: 1, Length: 2}, {Begin: far, Data: 1, Length: 1},
		}}
		b := bytes.Repeat([]byte{1}, 3*block)
		if n, err := r.ReadAt(b, block+512); n != len(b) || err != nil {
			t.Fatalf("%#x: %d, %v", far, n, err)
		}
		if want := append(bytes.Repeat([]byte{7}, block-512), make([]byte, 2*block+512)...); !bytes.Equal(b, want) {
			t.Errorf("%#x: it reads something else", far)
		}
		if n, err := r.ReadAt(b[:1024], 4097*block-512); n != 1024 || err != nil || b[0] != 0 || (b[512] == 7) != (far == 4097) {
			t.Errorf("%#x: %d, %v", far, n, err)
		}
	}
}
