package layertar

import (
	"errors"
	"fmt"
	"io"
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
	at := a.at.dir()
	switch rel := at.path + "/" + base; {
	case at.own, a.ours.whole(rel):
		return nil
	case !a.ours.holds(rel):
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
	d := *a.at.dir()
	if d.own {
		return nil
	}
	fd, err := openHere(d.fd, ".", unix.O_RDONLY)
	if err != nil {
		return fmt.Errorf("list %q: %w", d.rel(), err)
	}
	f := os.NewFile(uintptr(fd), d.rel())
	defer f.Close()
	for last := false; !last; {
		names, err := f.Readdirnames(listSize)
		if err != nil && err != io.EOF {
			return fmt.Errorf("list %q: %w", d.rel(), err)
		}
		if last = len(names) < listSize; last {
			f.Close() // one less where directories are nested deeply
		}
		for _, name := range names {
			if err := a.hide(name); err != nil {
				return err
			}
		}
	}
	return a.ownAll()
}

// ownAll notes that all that is left in the current directory is the layer's own, so that the next marker
// need not look.
func (a *applier) ownAll() error {
	d := a.at.dir()
	d.own = true
	if d.path == "" {
		return nil
	}
	return a.ours.add(d.path, true)
}
