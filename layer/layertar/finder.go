package layertar

import (
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// A finder looks up paths of a tree one after the other. It keeps the directory of the last one
// open, because the next one mostly is in the same.
type finder struct {
	root *node
	dir  *node // holds what was found last
}

func newFinder(root *node) *finder { return &finder{root: root, dir: root} }

// find looks at rel. The node is good until the next call.
func (f *finder) find(rel string) (*node, error) {
	if rel == "/" {
		return f.root, nil
	}
	parent := path.Dir(rel)
	if f.dir.rel != parent {
		if err := f.descend(parent); err != nil {
			return nil, err
		}
	}
	return f.dir.child(path.Base(rel))
}

// descend opens a directory, from the root down.
func (f *finder) descend(rel string) error {
	f.close()
	for _, name := range strings.Split(strings.Trim(rel, "/"), "/") {
		if name == "" {
			continue
		}
		next, err := f.dir.child(name)
		if err != nil {
			return err
		}
		if next.dir, err = next.open(unix.O_DIRECTORY); err != nil {
			return err
		}
		f.close()
		f.dir = next
	}
	return nil
}

func (f *finder) close() {
	if f.dir != f.root {
		f.dir.close()
		f.dir = f.root
	}
}
