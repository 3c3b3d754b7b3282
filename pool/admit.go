package pool

import (
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool"
)

// Admit is ErrNoSpace where a pool of that status takes no new nodes: it has no free block, or less data or metadata free than space
// wants. What takes something away is never asked.
func (p *Pool) Admit(space Space, st thinpool.PoolStatus) error {
	if st.Mode == thinpool.ModeOutOfDataSpace {
		err := fmt.Errorf("pool %q is out of data space: %w", p.files.name, errs.ErrNoSpace)
		return errs.WithHint(err, RoomHint)
	}
	for _, part := range []struct {
		name        string
		free, total uint64
		unit        int64
	}{
		{"data", st.FreeData(), st.TotalData, p.record.BlockSize},
		{"metadata", st.FreeMetadata(), st.TotalMetadata, thinpool.MetadataBlockSize},
	} {
		if !low(part.free, part.total, space.MinFree) {
			continue
		}
		err := fmt.Errorf("pool %q has %s of %s of %s free, and takes no new nodes below %d%% (min-free): %w", p.files.name,
			inMiB(int64(part.free)*part.unit), inMiB(int64(part.total)*part.unit), part.name, space.MinFree, errs.ErrNoSpace)
		return errs.WithHint(err, RoomHint)
	}
	return nil
}

// low tells whether less than so many percent are free.
func low(free, total uint64, percent int) bool {
	return total > 0 && free*100 < total*uint64(max(percent, 0))
}

// AdmitWritable is ErrNoSpace where snapshots and volumes could come to take more than the pool's ceiling, if they had so many
// bytes together. In a transaction that adds to them it cannot be passed.
func (p *Pool) AdmitWritable(space Space, st thinpool.PoolStatus, bytes int64) error {
	total := int64(st.TotalData) * p.record.BlockSize
	if space.Overcommit == 0 || total <= 0 || float64(bytes)*100 <= float64(total)*float64(space.Overcommit) {
		return nil
	}
	err := fmt.Errorf("the snapshots and volumes of pool %q could come to take %s of %s, which is more than %d%% (overcommit): %w", p.files.name,
		inMiB(bytes), inMiB(total), space.Overcommit, errs.ErrNoSpace)
	return errs.WithHint(err, "ask for less (--size), remove some (dmlayer rm), or make the pool larger (dmlayer pool extend)")
}

// inMiB says a size in the unit of people who count what is left.
func inMiB(bytes int64) string {
	const mib, gib = 1 << 20, 1 << 30
	if bytes >= 10*gib {
		return fmt.Sprintf("%.1f GiB", float64(bytes)/gib)
	}
	return fmt.Sprintf("%.1f MiB", float64(bytes)/mib)
}

// Settings are what the pool's record says now of its space.
func Settings(tx *metadata.Tx) (Space, error) {
	r, err := tx.Pool()
	return r.Space, err
}
