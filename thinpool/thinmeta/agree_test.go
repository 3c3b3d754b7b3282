package thinmeta_test

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

// history makes a pool by random operations.
func history(seed uint64, operations int) *metagen.Pool {
	r := rand.New(rand.NewPCG(seed, 3))
	p := metagen.New(metagen.Options{Seed: seed, DataBlocks: 200_000, MetadataBlocks: 8192})
	p.TransactionID = seed
	p.Thin(0)
	next := uint64(1)
	for range operations {
		ids := p.IDs()
		id := ids[r.IntN(len(ids))]
		begin := r.Uint64N(3000)
		switch n := r.IntN(20); {
		case n == 0:
			p.Thin(next)
			next += 1 + r.Uint64N(100)
		case n < 4:
			p.TransactionID++
			p.Snap(next, id)
			next++
		case n == 4 && len(ids) > 3:
			p.Delete(id)
		case n == 5:
			p.Hold()
		case n < 9:
			p.Unmap(id, begin, 1+r.Uint64N(400))
		default:
			p.Write(id, begin, 1+r.Uint64N(200))
		}
	}
	return p
}

// pairs are some devices to compare.
func pairs(p *metagen.Pool) [][2]uint64 {
	ids := p.IDs()
	var out [][2]uint64
	for i := range ids[1:] {
		out = append(out, [2]uint64{ids[i], ids[i+1]}, [2]uint64{ids[i+1], ids[i/2]})
	}
	return append(out, [2]uint64{ids[0], ids[0]})[:min(len(out), 12)]
}

func TestAgreesOnGenerated(t *testing.T) {
	thintools.Need(t)
	for seed := range uint64(12) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := history(seed, 10+20*int(seed))
			im := p.Image()
			path := thintools.Save(t, im.Bytes)
			thintools.Agree(t, thintools.Subject{Path: path, Pairs: pairs(p)})
			if im.Held != 0 {
				thintools.Agree(t, thintools.Subject{Path: path, Root: im.Held})
			}
		})
	}
}

func TestAgreesOnEmpty(t *testing.T) {
	thintools.Need(t)
	p := metagen.New(metagen.Options{})
	thintools.Agree(t, thintools.Subject{Path: thintools.Save(t, p.Image().Bytes)})
}
