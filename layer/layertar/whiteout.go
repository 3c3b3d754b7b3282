package layertar

import (
	"errors"
	"io/fs"
	"os"
	"path"
)

// whiteout removes what lower layers hold under a name.
func (a *applier) whiteout(dir, name string) error {
	if name == "" || name == "." || name == ".." {
		return invalid("whiteout of %q", name)
	}
	rel := path.Join(dir, name)
	if _, err := os.Lstat(a.full(rel)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return a.hide(rel)
}

// hide removes rel, but not what this layer brought.
func (a *applier) hide(rel string) error {
	if _, mine := a.ours[rel]; !mine {
		return a.makeWay(rel, true)
	}
	return a.hideBelow(rel)
}

// hideBelow removes what lower layers hold in a directory. Anything but a directory is left alone.
func (a *applier) hideBelow(rel string) error {
	fi, err := os.Lstat(a.full(rel))
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		return nil
	}
	entries, err := os.ReadDir(a.full(rel))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if err := a.hide(path.Join(rel, e.Name())); err != nil {
			return err
		}
	}
	return nil
}
