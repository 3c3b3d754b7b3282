package pool

import (
	"context"
	"fmt"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// Usage is what a thin device takes, in bytes.
type Usage struct {
	Used      int64 // mapped, shared with others or not
	Exclusive int64 // what deleting it would free; -1: not known
}

// Usage tells what each thin device takes, at one moment. It reads the mappings of all devices once, because only all of them
// tell what nobody else has.
//
// Where metadata is damaged it is ErrDamaged and says what, beside what could be read: devices that are hit are missing, and of the
// others nobody knows what is theirs alone. The other errors are those of ReadMetadata.
func (s *Session) Usage(ctx context.Context) (map[metadata.ThinID]Usage, error) {
	devices := map[metadata.ThinID]Usage{}
	err := s.ReadMetadata(ctx, func(m *thinmeta.Metadata) error {
		all, err := m.Usage(ctx)
		if err != nil {
			return err
		}
		for _, d := range all.Devices {
			if d.Err != nil {
				continue
			}
			u := Usage{int64(d.Mapped) * s.p.record.BlockSize, -1}
			if all.Err == nil {
				u.Exclusive = int64(d.Exclusive) * s.p.record.BlockSize
			}
			devices[metadata.ThinID(d.ID)] = u
		}
		if all.Err != nil {
			return fmt.Errorf("%w: %w", all.Err, errs.ErrDamaged)
		}
		return nil
	})
	return devices, err
}
