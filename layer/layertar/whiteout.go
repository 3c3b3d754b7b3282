package layertar

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// whiteout removes what lower layers hold under a name in the current directory.
func (a *applier) whiteout(name string) error {
	if name == "" || name == "." || name == ".." {
		return invalid("whiteout of %q", name)
	}
	var st unix.Stat_t
	err := unix.Fstatat(a.at.dir().fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return a.pathError("stat", name, err)
	}
	return a.hide(name)
}

// hide removes an entry of the current directory, but not what this layer brought.
func (a *applier) hide(base string) error {
	if !a.ours.holds(a.at.dir().path + "/" + base) {
		return a.remove(base)
	}
	err := a.at.push(base)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil
	}
	if err != nil {
		return a.pathError("open", base, err)
	}
	if err := a.hideAll(); err != nil {
		return err
	}
	return a.at.pop()
}

// hideAll removes what lower layers hold in the current directory.
func (a *applier) hideAll() error {
	names, err := a.at.dir().list()
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := a.hide(name); err != nil {
			return err
		}
	}
	return nil
}

func (d *openDir) list() ([]string, error) {
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", d.rel(), err)
	}
	f := os.NewFile(uintptr(fd), d.rel())
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list %q: %w", d.rel(), err)
	}
	return names, nil
}
