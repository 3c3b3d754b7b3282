package thinmeta_test

import (
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// What is read into used memory, less and more than it keeps, is what is read into fresh memory.
func TestMemory(t *testing.T) {
	var memory thinmeta.Memory
	for seed := range uint64(20) {
		p := history(seed, 10+40*int(seed*7%20))
		im := p.Image()
		fresh, used := openImage(t, im, thinmeta.Options{}), openImage(t, im, thinmeta.Options{Memory: &memory})
		for _, id := range p.IDs() {
			want, have := all(t, fresh.Mappings(t.Context(), id)), all(t, used.Mappings(t.Context(), id))
			if !slices.Equal(want, have) {
				t.Errorf("seed %d: device %d has %v, in used memory %v", seed, id, want, have)
			}
		}
	}
}
