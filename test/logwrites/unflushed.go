package logwrites

import (
	"fmt"
	"math/rand/v2"
)

// Part is what reached the disk of an entry whose flush did not: the first so many sectors of it.
type Part struct {
	Entry   int
	Sectors uint64
}

// tearing is where a write may be torn, in bytes: no disk of today splits what is smaller and aligned.
const tearing = 4096

// Unflushed chooses what a disk with a cache may have kept besides the first n entries: of the writes that
// the next flush was to make durable, any, and of any only the beginning. Writes that come after that flush
// had not been sent.
func Unflushed(entries []Entry, n int, rnd *rand.Rand) []Part {
	var parts []Part
	for i := n; i < len(entries); i++ {
		e := entries[i]
		if e.Mark != "" || e.Flags&(Flush|FUA) != 0 {
			return parts
		}
		switch rnd.IntN(4) {
		case 0:
			parts = append(parts, Part{i, e.Sectors})
		case 1:
			parts = append(parts, Part{i, rnd.Uint64N(e.Sectors + 1)})
		}
	}
	return nil // nobody asked for a flush: they may be anything's
}

// PlayParts writes parts of entries. Discards are played whole or not at all.
func (l *Log) PlayParts(dst Target, parts []Part) error {
	for _, p := range parts {
		e := l.Entries[p.Entry]
		if e.Flags&Discard != 0 {
			if p.Sectors < e.Sectors {
				continue
			}
		} else {
			end := e.Sector + p.Sectors
			if p.Sectors < e.Sectors {
				end -= end % uint64(tearing/l.sector)
			}
			e.Sectors = max(end, e.Sector) - e.Sector
		}
		if err := l.play(dst, e); err != nil {
			return fmt.Errorf("play part of entry %d: %w", p.Entry, err)
		}
	}
	return nil
}
