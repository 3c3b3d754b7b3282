package layer

import (
	"context"
	"fmt"
)

// Backup copies the pool's records, as they are, to a backup outside the pool and into the pool's label: what
// pool.Import brings a pool back with whose root directory is lost. Side files (see LayerWriter.Blob) are in neither.
func (s *Store) Backup(ctx context.Context) error {
	o, err := s.begin(ctx)
	if err != nil {
		return err
	}
	defer o.Exit()
	if err := o.Pair(ctx); err != nil {
		return err
	}
	return o.CopyRecords(ctx)
}

// BackupIfDue is Backup where the records have changed since the last one and that is a minute or more ago. Nothing does it by itself: a
// program calls it when it has done its work, and one that lives long now and then.
func (s *Store) BackupIfDue(ctx context.Context) error {
	due, err := s.pool.BackupDue()
	if err != nil {
		return fmt.Errorf("back up the records: %w", err)
	}
	if !due {
		return nil
	}
	return s.Backup(ctx)
}
