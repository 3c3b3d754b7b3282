package layer

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/metadata"
)

// Outlived says what is left of dead users.
type Outlived struct {
	Yes bool // some are still counted
	PID int  // a process for whom the node is mounted elsewhere, 0 where that is this process's mount namespace or where somebody works in the mount
	// Busy is ErrBusy, naming who uses the node; nil where nothing is left.
	Busy error
}

// DismissDead forgets those users of a node's default mount of whom dead says that they have died, and with the last one unmounts the node as UnmountFor does.
// It leaves all of them counted as long as the node is mounted anywhere besides: a container that outlives whoever mounted for it has a mount of its own, and which of the
// users it was mounted for cannot be told. What is mounted in a mount namespace of the same root on the same directory is a copy of the default mount and keeps nothing.
func (s *Store) DismissDead(ctx context.Context, name string, dead func(MountUser) bool) (left Outlived, err error) {
	err = s.withNode(ctx, s.hold, name, func(o *op, n metadata.Node) (err error) {
		left, err = o.dismissDead(ctx, n, dead)
		return err
	})
	return left, opError("unmount", name, err)
}

func (o *op) dismissDead(ctx context.Context, n metadata.Node, dead func(MountUser) bool) (Outlived, error) {
	users, err := o.users(n.ID)
	if err != nil {
		return Outlived{}, err
	}
	var gone []string
	for user, u := range users {
		if dead(mountUser(n, user, u)) {
			gone = append(gone, user)
		}
	}
	if len(gone) == 0 {
		return Outlived{}, nil
	}
	others, err := o.mountedBesides(n)
	if err != nil {
		return Outlived{}, err
	}
	if len(others) > 0 {
		by := others[len(others)-1]
		return Outlived{Yes: true, PID: by.PID, Busy: busyWith(n, by)}, nil
	}
	slices.Sort(gone)
	for _, user := range gone {
		err := o.dismiss(ctx, n, user, func(int) int { return 0 })
		if errors.Is(err, errs.ErrBusy) {
			return Outlived{Yes: true, Busy: err}, nil // somebody works in it
		}
		if err != nil {
			return Outlived{}, err
		}
	}
	return Outlived{}, nil
}

// busyWith is ErrBusy for a node that somebody has mounted besides its default mount.
func busyWith(n metadata.Node, by fsutil.User) error {
	who := by.String()
	if by.PID == 0 { // this mount namespace
		who = "mounted on " + by.Path
	}
	return errs.WithHint(fmt.Errorf("%s %q is %s: %w", n.Kind, n.Name, who, errs.ErrBusy), "end what uses it")
}

// mountedBesides returns who has a node mounted besides its default mount.
func (o *op) mountedBesides(n metadata.Node) ([]fsutil.User, error) {
	info, err := o.dm().Info(o.ref(n.ID))
	if errors.Is(err, devmapper.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return fsutil.MountedBesides(info.Dev.Major, info.Dev.Minor, filepath.Join(o.s.pool.MountDir(), n.Name))
}
