package cli

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/layer"
)

// withStore opens the pool of --pool, starting it where needed, and calls fn.
func (a *app) withStore(cmd *cobra.Command, fn func(ctx context.Context, s *layer.Store) error) (err error) {
	if err := a.needRoot(cmd); err != nil {
		return err
	}
	ctx := cmd.Context()
	s, err := layer.Open(ctx, layer.Config{Dirs: a.dirs(), Pool: a.flags.pool, Logger: a.logger()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	defer func() { a.backUp(ctx, s) }()
	return fn(ctx, s)
}

// backUp makes a backup of the records at the end of a command, where one is due. That it fails is no failure of the
// command, and pool inspect tells how old the last one is.
func (a *app) backUp(ctx context.Context, s *layer.Store) {
	if ctx.Err() != nil {
		return
	}
	if err := s.BackupIfDue(ctx); err != nil {
		a.logger().Warn("the records were not backed up", "error", err)
	}
}
