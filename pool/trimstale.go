package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Stale tells how many bytes of the data file belong to no thin device and are allocated on the host all the same: what giving free blocks back
// would free there. known is false where the data is no file. It is read from the live metadata, beside others' work, so that it may be
// a little off.
func (s *Session) Stale(ctx context.Context) (stale int64, known bool, err error) {
	if s.p.record.Backing.Type != BackingLoopback {
		return 0, false, nil
	}
	f, err := os.Open(s.p.files.data())
	if err != nil {
		return 0, false, err
	}
	defer f.Close()
	err = s.glance(func(m *thinmeta.Metadata) error {
		stale, err = staleIn(ctx, m, f, s.p.record.BlockSize)
		return err
	})
	if err != nil {
		return 0, false, fmt.Errorf("compare %s with the blocks in use: %w", f.Name(), err)
	}
	return stale, true, nil
}

// staleIn adds up what is allocated of a file between the blocks in use.
func staleIn(ctx context.Context, m *thinmeta.Metadata, f *os.File, block int64) (stale int64, err error) {
	free := int64(0) // where the next free run begins
	for run, err := range m.References(ctx, thinmeta.DataSpace) {
		if err != nil {
			return 0, err
		}
		n, err := allocatedIn(f, free, int64(run.Begin)*block)
		if err != nil {
			return 0, err
		}
		stale += n
		free = int64(run.Begin+run.Length) * block
	}
	n, err := allocatedIn(f, free, int64(m.Superblock().DataSpace.Blocks)*block)
	return stale + n, err
}

// allocatedIn is how much of a range of a file is no hole.
func allocatedIn(f *os.File, begin, end int64) (n int64, err error) {
	for begin < end {
		data, err := f.Seek(begin, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) || err == nil && data >= end {
			return n, nil
		}
		if err != nil {
			return n, err
		}
		hole, err := f.Seek(data, unix.SEEK_HOLE)
		if errors.Is(err, io.EOF) || errors.Is(err, unix.ENXIO) {
			return n, nil // it was punched meanwhile
		}
		if err != nil {
			return n, err
		}
		n += min(hole, end) - data
		begin = hole
	}
	return n, nil
}
