package pool

import (
	"context"
	"fmt"
	"io"
	"math"
	"sort"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// thinReader reads a thin device of a pool that does not run, from the data device.
type thinReader struct {
	data  io.ReaderAt
	runs  []thinmeta.Mapping // by where they begin
	block int64              // bytes
}

func newThinReader(ctx context.Context, m *thinmeta.Metadata, data io.ReaderAt, id metadata.ThinID) (*thinReader, error) {
	r := &thinReader{data: data, block: int64(m.Superblock().DataBlockSize) * int64(devmapper.SectorSize)}
	blocks := uint64(math.MaxInt64 / r.block)
	for run, err := range m.Mappings(ctx, uint64(id)) {
		if err == nil && (run.End() < run.Begin || run.Length > blocks || run.Data > blocks-run.Length) {
			err = fmt.Errorf("%w: %d blocks of thin device %d from %d on are mapped to %d", thinmeta.ErrDamaged, run.Length, id, run.Begin, run.Data)
		}
		if err != nil {
			return nil, err
		}
		r.runs = append(r.runs, run)
	}
	return r, nil
}

// ReadAt reads zeros where nothing is mapped. It knows no end.
func (r *thinReader) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		part, from := r.piece(off+int64(n), int64(len(b)-n))
		into := b[n : n+int(part)]
		if from < 0 {
			clear(into)
		} else if _, err := r.data.ReadAt(into, from); err != nil {
			return n, err
		}
		n += int(part)
	}
	return n, nil
}

// piece returns how much of a range lies in one piece, and where on the data device; -1 is nowhere.
func (r *thinReader) piece(off, length int64) (part, from int64) {
	block := uint64(off / r.block)
	i := sort.Search(len(r.runs), func(i int) bool { return r.runs[i].End() > block })
	if i == len(r.runs) {
		return length, -1
	}
	run := r.runs[i]
	inside := off - int64(block)*r.block
	if run.Begin > block { // counted in blocks: what is mapped may lie behind all that bytes can be counted to
		if gap := run.Begin - block; gap <= uint64(length/r.block)+1 {
			length = min(length, int64(gap)*r.block-inside)
		}
		return length, -1
	}
	return min(length, int64(run.End()-block)*r.block-inside), int64(run.Data+block-run.Begin)*r.block + inside
}
