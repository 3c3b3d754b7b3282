package layertar

import (
	"fmt"
	"os"
)

// A root is an opened directory: it stays the same, whatever happens to the path that led there.
type root struct{ f *os.File }

func openRoot(dir string) (*root, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open tree: %w", err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open tree %q: %w", dir, err)
	}
	if !fi.IsDir() {
		f.Close()
		return nil, invalid("open tree %q: not a directory", dir)
	}
	return &root{f}, nil
}

func (r *root) close() { r.f.Close() }
