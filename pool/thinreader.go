package pool

import (
	"context"
	"io"
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
	for run, err := range m.Mappings(ctx, uint64(id)) {
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
	if run.Begin > block {
		return min(length, int64(run.Begin)*r.block-off), -1
	}
	inside := off - int64(run.Begin)*r.block
	return min(length, int64(run.Length)*r.block-inside), int64(run.Data)*r.block + inside
}
