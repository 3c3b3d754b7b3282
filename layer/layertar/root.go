package layertar

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/containerd/continuity/fs"
)

// A root is an opened directory. Paths below it start with "/", which is the directory itself.
type root struct {
	f    *os.File
	path string // "/proc/self/fd/N": the directory, whatever happens to the path that led there
}

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
	return &root{f: f, path: fmt.Sprintf("/proc/self/fd/%d", f.Fd())}, nil
}

func (r *root) close() { r.f.Close() }

// full returns the path that the kernel understands. For the root itself it ends in a slash, without
// which calls that do not follow symbolic links would see the magic link.
func (r *root) full(rel string) string { return r.path + rel }

// resolve follows every symbolic link in rel, all of them taken relative to the root, and returns
// where that leads. What does not exist is kept as it is.
func (r *root) resolve(rel string) (string, error) {
	p, err := fs.RootPath(r.path, rel)
	if errno := syscall.Errno(0); err != nil && !errors.As(err, &errno) {
		return "", invalid("resolve %q: %w", rel, err) // a loop of links, for which there is no sentinel
	}
	if err != nil {
		return "", err
	}
	rest, ok := strings.CutPrefix(p, r.path)
	if !ok {
		return "", fmt.Errorf("resolve %q: led out of the tree", rel)
	}
	if rest == "" {
		rest = "/"
	}
	return rest, nil
}
