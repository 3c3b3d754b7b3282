package layertar

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"sort"
	"time"

	"golang.org/x/sys/unix"
)

// A node is one file of a tree that is being walked. Directories are entered by file descriptor, so
// that a tree may be deeper than a path may be long, and no symbolic link is followed.
type node struct {
	rel  string // absolute within the tree
	name string // in parent
	at   *os.File
	st   unix.Stat_t
	dir  *os.File // when entered

	names []string // that it holds, in byte order; when entered to look at them
}

// openTree opens the root of a tree.
func openTree(dir string) (*node, error) {
	r, err := openRoot(dir)
	if err != nil {
		return nil, err
	}
	n := &node{rel: "/", dir: r.f}
	if err := unix.Fstat(int(r.f.Fd()), &n.st); err != nil {
		r.close()
		return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return n, nil
}

// path returns a path of the node that the kernel understands, whatever the depth.
func (n *node) path() string {
	if n.at == nil {
		return fmt.Sprintf("/proc/self/fd/%d/", n.dir.Fd())
	}
	return fmt.Sprintf("/proc/self/fd/%d/%s", n.at.Fd(), n.name)
}

// child looks at a name in a directory that was entered. It returns an error that is
// fs.ErrNotExist where there is none.
func (n *node) child(name string) (*node, error) {
	c := &node{rel: path.Join(n.rel, name), name: name, at: n.dir}
	if err := unix.Fstatat(int(n.dir.Fd()), name, &c.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return nil, &os.PathError{Op: "stat", Path: c.rel, Err: err}
	}
	return c, nil
}

// enter opens a directory to look at its children.
func (n *node) enter() error {
	if n.dir == nil {
		f, err := n.open(unix.O_DIRECTORY)
		if err != nil {
			return err
		}
		n.dir = f
	} else if _, err := n.dir.Seek(0, io.SeekStart); err != nil {
		return fmt.Errorf("list %q: %w", n.rel, err)
	}
	names, err := n.dir.Readdirnames(-1)
	if err != nil {
		return fmt.Errorf("list %q: %w", n.rel, err)
	}
	sort.Strings(names)
	n.names = names
	return nil
}

// open opens the node for reading.
func (n *node) open(flags int) (*os.File, error) {
	// Without O_NONBLOCK a fifo that has just taken a file's place would be waited for.
	flags |= unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	for {
		fd, err := unix.Openat(int(n.at.Fd()), n.name, flags, 0)
		if err == nil {
			return os.NewFile(uintptr(fd), n.rel), nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, &os.PathError{Op: "open", Path: n.rel, Err: err}
		}
	}
}

func (n *node) close() {
	if n.dir != nil {
		n.dir.Close()
		n.dir, n.names = nil, nil
	}
}

func (n *node) kind() uint32     { return n.st.Mode & unix.S_IFMT }
func (n *node) isDir() bool      { return n.kind() == unix.S_IFDIR }
func (n *node) mtime() time.Time { return time.Unix(n.st.Mtim.Unix()) }
func (n *node) ctime() time.Time { return time.Unix(n.st.Ctim.Unix()) }

// sparse reports whether a file has holes.
func (n *node) sparse() bool { return n.st.Blocks*512 < n.st.Size }

// linked reports whether other paths may share the inode.
func (n *node) linked() bool { return n.st.Nlink > 1 && !n.isDir() }

func (n *node) xattrs() (map[string]string, error) {
	set, err := readXattrs(n.path())
	if err != nil {
		return nil, fmt.Errorf("read attributes of %q: %w", n.rel, err)
	}
	return set, nil
}

func (n *node) readlink() (string, error) {
	target, err := os.Readlink(n.path())
	if errors.Is(err, unix.EINVAL) { // no link any more
		err = errReplaced
	}
	if err != nil {
		return "", fmt.Errorf("read link %q: %w", n.rel, err)
	}
	return target, nil
}

// content opens a regular file, and makes sure that it is the one that was looked at.
func (n *node) content() (*os.File, error) {
	f, err := n.open(0)
	if errors.Is(err, unix.ENXIO) { // a socket
		err = errReplaced
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Ino != n.st.Ino || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, fmt.Errorf("read %q: %w", n.rel, errReplaced)
	}
	return f, nil
}
