package thinmeta_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// By the space maps a device has for itself what it has by everybody's mappings, unless a metadata snapshot has it too.
func TestUnshared(t *testing.T) {
	for seed := range uint64(30) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := history(seed, 10+20*int(seed))
			im := p.Image()
			m := openImage(t, im, thinmeta.Options{})
			u, err := m.Usage(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, id := range p.IDs() {
				have, want := all(t, m.Unshared(t.Context(), id)), all(t, u.Exclusive(t.Context(), id))
				if m.Superblock().HeldRoot == 0 && !slices.Equal(have, want) || blocksIn(have) > blocksIn(want) {
					t.Errorf("device %d has %v, want %v", id, have, want)
				}
			}
			if held := m.Superblock().HeldRoot; held != 0 {
				snap := openImage(t, im, thinmeta.Options{Root: held})
				for _, err := range snap.Unshared(t.Context(), 0) {
					if !errors.Is(err, thinmeta.ErrNoSpaceMap) {
						t.Errorf("of a metadata snapshot: %v", err)
					}
				}
			}
		})
	}
}

func blocksIn(runs []thinmeta.Mapping) (n uint64) {
	for _, r := range runs {
		n += r.Length
	}
	return n
}

// Whatever is damaged, the errors are Damage.
func TestUnsharedDamaged(t *testing.T) {
	p := history(7, 200)
	for i, d := range metagen.Damages() {
		im := p.Image()
		if !d.Apply(im, rand.New(rand.NewPCG(uint64(i), 1))) {
			continue
		}
		m, err := thinmeta.Open(im, thinmeta.Options{})
		if err != nil {
			continue
		}
		for _, id := range p.IDs() {
			for _, err := range m.Unshared(t.Context(), id) {
				if err != nil && !errors.Is(err, thinmeta.ErrNoDevice) {
					checkDamage(t, err)
				}
			}
		}
	}
}
