package layer

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
)

// WatchMounts sees to it, until ctx ends, that an xfs of the pool that others mount does not retry for ever what a full pool refuses: Mount does so
// itself, others know nothing of it. It is told of mounts in our mount namespace, and then looks at all. Where the pool has no xfs it only waits.
func (s *Store) WatchMounts(ctx context.Context) error {
	if s.pool.Record().FS != string(fsutil.XFS) {
		<-ctx.Done()
		return nil
	}
	return fsutil.WatchMounts(ctx, func(context.Context) error { return s.stopRetries() })
}

func (s *Store) stopRetries() error {
	devs, err := fsutil.MountedXFS()
	if err != nil {
		return fmt.Errorf("stop retries of xfs: %w", err)
	}
	for _, d := range devs {
		info, err := s.pool.Devmapper().Info(devmapper.ByDev(devmapper.DevNum(d)))
		if err != nil || !strings.HasPrefix(string(info.UUID), "DMLAYER-"+s.pool.UUID()) {
			continue // another's, or gone by now
		}
		if err := fsutil.StopRetries(d); err != nil && !errors.Is(err, errs.ErrNotFound) {
			s.log.Warn("stop retries of xfs", "device", d.String(), "error", err) // the others count no less
		}
	}
	return nil
}
