package thinmeta_test

import (
	"fmt"
	"testing"

	"github.com/dmlayer/dmlayer/test/thintools"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta/metagen"
)

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
