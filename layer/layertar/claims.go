package layertar

import (
	"hash/maphash"
	"strings"
)

// maxClaims bounds the paths that are remembered of one layer, and so the memory that an archive can take:
// some 40 MiB in use, which Go may let grow to four times as much where no memory limit is set.
const maxClaims = 2 << 20

// claims is what a layer has brought: what its whiteouts must spare. Below a directory that the layer
// made, everything is its own, so only what it put into directories of lower layers is remembered, and those
// directories. That is little in all archives but made-up ones. It holds hashes; the seed is random, so
// that nobody can make paths that collide. With a million paths, one pair collides in one of 40 million
// layers, and a file would survive its whiteout.
type claims struct {
	seed maphash.Seed
	all  map[uint64]struct{} // paths below which there is nothing of a lower layer
	some map[uint64]struct{} // directories below which there may be
}

func newClaims() *claims {
	return &claims{seed: maphash.MakeSeed(), all: map[uint64]struct{}{}, some: map[uint64]struct{}{}}
}

// whole reports whether the layer has brought all that rel holds. rel must not be below such a path.
func (c *claims) whole(rel string) bool {
	if c == nil {
		return false
	}
	_, ok := c.all[maphash.String(c.seed, rel)]
	return ok
}

// holds reports whether the layer has brought rel, or something below it. rel must not be below a path
// that it has brought as a whole.
func (c *claims) holds(rel string) bool {
	_, ok := c.some[maphash.String(c.seed, rel)]
	return ok || c.whole(rel)
}

// add notes that the layer has brought rel, and whether it has brought all that is below.
func (c *claims) add(rel string, whole bool) error {
	if len(c.all)+len(c.some) >= maxClaims {
		return unsupported("a layer with more than %d names in directories of lower layers", maxClaims)
	}
	if whole {
		c.all[maphash.String(c.seed, rel)] = struct{}{}
		rel = rel[:strings.LastIndexByte(rel, '/')]
	}
	for rel != "" {
		h := maphash.String(c.seed, rel)
		if _, ok := c.some[h]; ok {
			return nil
		}
		c.some[h] = struct{}{}
		rel = rel[:strings.LastIndexByte(rel, '/')]
	}
	return nil
}
