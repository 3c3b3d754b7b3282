package pool

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Descent is a thin device and the one that it began as a snapshot of, 0 for none.
type Descent struct{ Of, From metadata.ThinID }

// Owned is what a thin device has for itself.
type Owned struct {
	Bytes int64
	Err   error // ErrDamaged where the metadata does not tell; it says nothing of other devices
}

// Own tells how many bytes each of the devices has that the one it began as has not, by the key under which it is asked for: what was written into it,
// overwrites included. Devices that are gone are left out. It is read at one moment, and what two devices share is not read. The errors are those
// of ReadMetadata.
func (s *Session) Own(ctx context.Context, devices map[string]Descent) (own map[string]Owned, err error) {
	err = s.ReadMetadata(ctx, func(m *thinmeta.Metadata) error {
		own, err = ownIn(ctx, m, devices, s.p.record.BlockSize)
		return err
	})
	if errors.Is(err, thinmeta.ErrDamaged) {
		err = fmt.Errorf("%w: %w", err, errs.ErrDamaged)
	}
	return own, err
}

func ownIn(ctx context.Context, m *thinmeta.Metadata, devices map[string]Descent, blockSize int64) (map[string]Owned, error) {
	own := make(map[string]Owned, len(devices))
	for key, d := range devices {
		blocks, err := difference(ctx, m, d)
		switch {
		case errors.Is(err, thinmeta.ErrNoDevice):
		case errors.Is(err, thinmeta.ErrDamaged):
			own[key] = Owned{Err: fmt.Errorf("thin device %d: %w: %w", d.Of, err, errs.ErrDamaged)}
		case err != nil:
			return nil, err
		default:
			own[key] = Owned{Bytes: int64(blocks) * blockSize}
		}
	}
	return own, nil
}

// difference counts the blocks that a device has and the one that it began as has not.
func difference(ctx context.Context, m *thinmeta.Metadata, d Descent) (uint64, error) {
	var blocks uint64
	if d.From == 0 {
		for run, err := range m.Mappings(ctx, uint64(d.Of)) {
			if err != nil {
				return 0, err
			}
			blocks += run.Length
		}
		return blocks, nil
	}
	for run, err := range m.Diff(ctx, uint64(d.From), uint64(d.Of), thinmeta.DiffOptions{}) {
		if err != nil {
			return 0, err
		}
		if run.Change == thinmeta.Different || run.Change == thinmeta.RightOnly {
			blocks += run.Length
		}
	}
	return blocks, nil
}
