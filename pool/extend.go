package pool

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool"
)

// Extent is a size to grow to, in bytes. The zero value is the size that there is.
type Extent struct {
	Bytes int64
	More  bool // Bytes are that many more than there are
}

func (e Extent) of(now int64) int64 {
	switch {
	case e.More && now > maxSize-e.Bytes:
		return 2 * maxSize
	case e.More:
		return now + e.Bytes
	case e.Bytes == 0:
		return now
	}
	return e.Bytes
}

// Extension says how large a pool is to be.
type Extension struct {
	Data Extent
	// Metadata is of the backing: what is held back of it counts.
	Metadata Extent
}

// Sizes are what a pool has, in bytes of its backing.
type Sizes struct {
	Data     int64 `json:"dataSize"`
	Metadata int64 `json:"metadataSize"`
	// NoSpare says of a pool that was extended that the host has no room for a spare as large as the metadata, which a repair needs.
	NoSpare bool `json:"-"`
}

// Extend makes a pool larger while it runs, and starts it where it does not: its backing, and then its tables. Without any size it
// takes what its devices have become. What comes out may be more than was asked for, in units of the backing. Killed anywhere, the pool
// works on, with the old size or the new one, and the next growth or start takes up what the devices have. Errors: ErrInvalid where it
// would become smaller or larger than a pool can be, ErrNoSpace with what there is, ErrDamaged where the kernel lets it not grow.
func Extend(ctx context.Context, dirs Dirs, name string, e Extension) (Sizes, error) {
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return Sizes{}, err
	}
	defer p.Close()
	s, err := p.Enter(ctx)
	if err != nil {
		return Sizes{}, err
	}
	defer s.Exit()
	now, err := s.extend(ctx, e)
	if err != nil {
		return now, fmt.Errorf("extend pool %q: %w", name, kernelError(err))
	}
	return now, nil
}

func (s *Session) extend(ctx context.Context, e Extension) (now Sizes, err error) {
	err = s.withFigures(ctx, func(b backing, f *figures) error {
		if f.room.DataSize > f.record.Backing.DataSize || f.room.MetadataSize > f.record.Backing.MetadataSize {
			if err := s.recordDevices(ctx, f); err != nil {
				return err
			}
		}
		block := s.p.record.BlockSize
		data, meta := e.Data.of(f.room.DataSize), e.Metadata.of(f.room.MetadataSize)
		for _, part := range []struct {
			what                    string
			want, have, most, limit int64
		}{
			{"data", data / block * block, f.room.DataSize / block * block, f.room.DataMax, maxSize},
			{"metadata", meta &^ 4095, f.room.MetadataSize &^ 4095, f.room.MetadataMax, int64(thinpool.MaxMetadataSize)},
		} {
			switch {
			case part.want < part.have:
				err := fmt.Errorf("%s of %s would be smaller than the %s that there are: %w", part.what, inMiB(part.want), inMiB(part.have), errs.ErrInvalid)
				return errs.WithHint(err, "a pool can only grow; SIZE is the new size, +SIZE is that much more")
			case part.want > part.limit && part.want > part.have:
				return fmt.Errorf("%s of %s: a pool has %s at most: %w", part.what, inMiB(part.want), inMiB(part.limit), errs.ErrInvalid)
			case part.want > part.most && part.want > part.have:
				return s.noRoom(part.what, part.want, part.have, part.most, f.room.Free)
			}
		}
		if err := s.growTo(ctx, b, f, data, meta); err != nil {
			return err
		}
		now = Sizes{Data: f.room.DataSize, Metadata: f.room.MetadataSize}
		whole, err := hasBlocks(s.p.files.spare(), now.Metadata)
		now.NoSpare = !whole
		return err
	})
	return now, err
}
