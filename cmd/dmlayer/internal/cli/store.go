package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
	"github.com/dmlayer/dmlayer/pool"
)

// withStore opens the pool of --pool, starting it where needed, and calls fn.
func (a *app) withStore(cmd *cobra.Command, fn func(ctx context.Context, s *layer.Store) error) (err error) {
	if err := a.needRoot(cmd); err != nil {
		return err
	}
	ctx := cmd.Context()
	c := layer.Config{Dirs: a.dirs(), Pool: a.flags.pool, Logger: a.logger()}
	s, err := layer.Open(ctx, c)
	if errors.Is(err, errs.ErrDamaged) && !errors.Is(err, pool.ErrMispaired) && looks[verb(cmd)] {
		return a.withRecords(ctx, c, err, fn)
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	defer func() { a.backUp(ctx, s) }()
	a.noteAge(s.Life())
	return fn(ctx, s)
}

// onNode opens the pool and runs fn with the name of the node that arg means, which may be that of an image.
func (a *app) onNode(cmd *cobra.Command, arg string, fn func(ctx context.Context, s *layer.Store, name string) error) error {
	return a.onFound(cmd, arg, checkNode, finder.node, fn)
}

// onOwnNode is onNode for a command that takes no image in a node's place.
func (a *app) onOwnNode(cmd *cobra.Command, arg string, fn func(ctx context.Context, s *layer.Store, name string) error) error {
	return a.onFound(cmd, arg, checkName, finder.name, fn)
}

func (a *app) onFound(cmd *cobra.Command, arg string, check func(string) error, find func(finder, context.Context, string) (string, error),
	fn func(ctx context.Context, s *layer.Store, name string) error,
) error {
	if err := check(arg); err != nil {
		return err
	}
	return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
		name, err := find(newFinder(s), ctx, arg)
		if err != nil {
			return err
		}
		return fn(ctx, s, name)
	})
}

// noteAge says in time that a pool will take no more nodes one day.
func (a *app) noteAge(l pool.Life) {
	if l.Aged() {
		a.note("pool %q: %s: %s", a.flags.pool, l, l.Advice(a.flags.pool))
	}
}

// looks are the commands that can do without the pool, where it is damaged.
var looks = map[string]bool{
	"ls": true, "inspect": true, "tree": true, "image ls": true, "image inspect": true, "image history": true, "image tree": true,
}

// withRecords calls fn with what can still be read of a pool that is damaged.
func (a *app) withRecords(ctx context.Context, c layer.Config, damage error, fn func(ctx context.Context, s *layer.Store) error) (err error) {
	s, err := layer.OpenRecords(ctx, c)
	if err != nil {
		return damage
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	fmt.Fprintf(a.err, "dmlayer: %s\nhint: this is what the records say; dmlayer pool check says what is wrong\n", message(damage, nil))
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
