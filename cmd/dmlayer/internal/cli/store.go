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
	return fn(ctx, s)
}
