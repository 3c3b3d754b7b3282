package pool

import (
	"context"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/thinpool"
)

var (
	pointGrowMetadata = fault.New("pool.grow.metadata-file")
	pointGrowData     = fault.New("pool.grow.data-file")
)

// room counts what the data file has blocks for and what the host has free: a sparse file may be promised more than there is,
// and then it cannot grow.
func (l loopback) room(context.Context) (Room, error) {
	var data, meta unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{l.files.data(): &data, l.files.metadata(): &meta} {
		if err := unix.Stat(path, st); err != nil {
			return Room{}, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	free, err := fsutil.FreeSpace(l.files.dir())
	if err != nil {
		return Room{}, err
	}
	r := Room{DataSize: data.Size, MetadataSize: meta.Size, Free: int64(free)}
	r.DataMax = max(r.DataSize, data.Blocks*512+r.Free)
	// The spare grows as much.
	r.MetadataMax = max(r.MetadataSize, min(r.MetadataSize+r.Free/2&^4095, int64(thinpool.MaxMetadataSize)))
	return r, nil
}

// grow makes the files larger, and then the loop devices, which do not see it by themselves.
func (l loopback) grow(ctx context.Context, data, metadata int64) error {
	if metadata > 0 {
		if err := l.growFile(ctx, l.files.metadata(), metadata, fsutil.Full); err != nil {
			return err
		}
		if err := pointGrowMetadata.Hit(); err != nil {
			return err
		}
	}
	if data > 0 {
		if err := l.growFile(ctx, l.files.data(), data, fsutil.Sparse); err != nil {
			return err
		}
	}
	return pointGrowData.Hit()
}

func (l loopback) growFile(ctx context.Context, path string, size int64, a fsutil.Allocation) error {
	if err := fsutil.Extend(ctx, path, uint64(size), a); err != nil {
		return err
	}
	found, err := fsutil.FindLoops(path)
	if err != nil {
		return err
	}
	for _, f := range found {
		if err := fsutil.SetLoopCapacity(f.Number); err != nil {
			return err
		}
	}
	return nil
}
