package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/layer"
)

type mountOptions struct {
	node, dir string
	layer.MountOptions
}

func (a *app) newMount() *cobra.Command {
	var o mountOptions
	cmd := &cobra.Command{
		Use:   "mount NAME [DIR]",
		Short: "Mount a node",
		Long: `Activates a node, mounts it on DIR, or on <run>/mnt/<pool>/<name>, and prints the directory. A layer
is always mounted read-only. An image's name stands for its top layer.`,
		Example: `  dmlayer mount web1
  dmlayer mount --read-only web1 /mnt/look`,
		GroupID:           groupNodes,
		Args:              args(1, 2),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			if err := checkNode(args[0]); err != nil {
				return err
			}
			o.node = args[0]
			if len(args) == 2 {
				if o.dir, err = absolute(args[1]); err != nil {
					return err
				}
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				name, err := newFinder(s).node(ctx, o.node)
				if err != nil {
					return err
				}
				m, err := s.Mount(ctx, name, o.dir, o.MountOptions)
				if err != nil {
					return err
				}
				return a.println(m.Dir)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.ReadOnly, "read-only", false, "mount read-only")
	f.BoolVar(&o.Trust, "trust", false, "check a file system that strangers wrote or of which a repair lost a part, and trust it from now on if it is sound")
	return exitCodes(cmd, 3, 5, 6, 7, 8)
}

func (a *app) newUnmount() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "unmount NAME|DIR",
		Aliases: []string{"umount"},
		Short:   "Unmount a node",
		Long: `Unmounts a node, or what is mounted on a directory: an argument with a / is a directory. The node
is deactivated when nobody uses it any more.`,
		Example: `  dmlayer unmount web1
  dmlayer unmount /mnt/look`,
		GroupID:           groupNodes,
		Args:              args(1, 1),
		ValidArgsFunction: a.completeNodes,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			target := args[0]
			if strings.Contains(target, "/") && !strings.HasPrefix(target, imagePrefix) {
				if target, err = absolute(target); err != nil {
					return err
				}
				return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
					return s.Unmount(ctx, target)
				})
			}
			if err := checkNode(target); err != nil {
				return err
			}
			return a.withStore(cmd, func(ctx context.Context, s *layer.Store) error {
				name, err := newFinder(s).node(ctx, target)
				if err != nil {
					return maybeDirectory(target, err)
				}
				return s.Unmount(ctx, name)
			})
		},
	}
	return exitCodes(cmd, 3, 5, 7, 8)
}

// maybeDirectory adds how to say that a directory is meant, where one has the name that no node has.
func maybeDirectory(target string, err error) error {
	if info, statErr := os.Stat(target); statErr == nil && info.IsDir() && errors.Is(err, errs.ErrNotFound) {
		return errs.WithHint(err, fmt.Sprintf("for the directory write ./%s", target))
	}
	return err
}

// absolute makes a path absolute; the library works for processes with other working directories.
func absolute(path string) (string, error) {
	if path == "" {
		return "", usagef("the directory must not be empty")
	}
	if strings.ContainsRune(path, 0) {
		return "", usagef("directory %q: has a zero byte", path)
	}
	return filepath.Abs(path)
}
