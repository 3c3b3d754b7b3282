package pooltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/testenv"
)

// detachTime is how long the last user of a disk may take to let go of it, before testenv.Scale: nobody who tests waits for one who never does.
const detachTime = 2 * time.Second

// detach closes a loop device and waits until it is gone, but not for ever: of one that somebody keeps open it says who. It goes when he closes it.
func detach(loop *fsutil.Loop, limit time.Duration) error {
	dev, err := fsutil.DevNumOf(loop.Path)
	err = errors.Join(err, loop.Close())
	ctx, cancel := context.WithTimeout(context.Background(), testenv.Scale(limit))
	defer cancel()
	derr := fsutil.Detach(ctx, loop.Number)
	if errors.Is(derr, errs.ErrBusy) {
		derr = fmt.Errorf("%w: %s", derr, strings.Join(whoHas(dev), ", "))
	}
	return errors.Join(err, derr)
}

// whoHas says who uses a block device: mounts, devices that lie on it, processes.
func whoHas(dev fsutil.DevNum) (users []string) {
	of := func(what string, list []string, err error) {
		if users = append(users, list...); err != nil {
			users = append(users, fmt.Sprintf("%s could not be told: %v", what, err))
		}
	}
	uses, err := fsutil.Users(dev)
	for i, u := range uses {
		name, rerr := os.ReadFile(filepath.Join("/sys/block", strings.TrimPrefix(u, "held by "), "dm/name"))
		if rerr == nil {
			uses[i] += " (" + strings.TrimSpace(string(name)) + ")"
		}
	}
	of("what lies on it", uses, err)
	others, err := fsutil.UsersOf(dev.Major, dev.Minor)
	var list []string
	for _, o := range others {
		list = append(list, o.String())
	}
	of("other processes", list, err)
	own, err := os.ReadDir("/proc/self/fd")
	list = nil
	for _, fd := range own {
		path, rerr := os.Readlink("/proc/self/fd/" + fd.Name())
		if now, serr := fsutil.DevNumOf(path); rerr == nil && serr == nil && now == dev {
			list = append(list, "open in the test itself as descriptor "+fd.Name())
		}
	}
	of("the test itself", list, err)
	return users
}
