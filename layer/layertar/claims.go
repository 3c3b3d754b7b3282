package layertar

import (
	"hash/maphash"
	"strings"
)

// claims is the set of paths that a layer has brought, and of the directories above them: what its
// whiteouts must spare. It holds hashes, because an archive may have millions of entries; the seed is
// random, so that nobody can make paths that collide. With a million paths, one pair collides in one of
// 40 million layers, and a file would survive its whiteout.
type claims struct {
	seed maphash.Seed
	has  map[uint64]struct{}
}

func newClaims() *claims {
	return &claims{seed: maphash.MakeSeed(), has: map[uint64]struct{}{}}
}

// holds reports whether the layer has brought rel, or something below it.
func (c *claims) holds(rel string) bool {
	_, ok := c.has[maphash.String(c.seed, rel)]
	return ok
}

// add notes that the layer has brought rel.
func (c *claims) add(rel string) {
	for rel != "" {
		h := maphash.String(c.seed, rel)
		if _, ok := c.has[h]; ok {
			return
		}
		c.has[h] = struct{}{}
		rel = rel[:strings.LastIndexByte(rel, '/')]
	}
}
