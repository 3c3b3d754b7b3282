package layer

import (
	"context"
	"errors"
	"fmt"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
)

// StopRetries tells each xfs of a node that others have mounted, such as containerd or Docker, to give up at the first write of
// metadata that fails, as those that Mount makes do: on a full pool it would try for ever, and whoever waits for it cannot be killed. It finds
// them in all mount namespaces, changes nothing in those that have been told, and needs no lock. Each new mount forgets it.
func (s *Store) StopRetries(ctx context.Context) error {
	devs, err := fsutil.MountedXFS()
	if err != nil {
		return err
	}
	var all error
	for _, dev := range devs {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("stop retries: %w", err)
		}
		info, err := s.pool.Devmapper().Info(devmapper.ByDev(devmapper.DevNum(dev)))
		if err != nil {
			continue // no device of device-mapper, or gone
		}
		if _, ours := s.pool.ThinID(info.UUID); !ours {
			continue
		}
		if err := fsutil.StopRetries(dev); err != nil && !errors.Is(err, ErrNotFound) {
			all = errors.Join(all, err)
		}
	}
	return all
}

// WatchMounts does that now, and each time that something is mounted in this process's mount namespace, until ctx ends, which is no error.
func (s *Store) WatchMounts(ctx context.Context) error {
	return fsutil.WatchMounts(ctx, func() {
		if err := s.StopRetries(ctx); err != nil && ctx.Err() == nil {
			s.log.Warn("a mounted xfs may retry for ever when the pool is full", "error", err)
		}
	})
}
