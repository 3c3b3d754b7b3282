package layertar

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxOpenDirs  = 64   // of a cursor; a deeper one climbs by ".."
	maxLinkHops  = 40   // symbolic links on one path, as in the kernel
	maxLinkNames = 1024 // remembered of either kind, so that an archive cannot fill the memory with them
)

// A cursor stands in a directory of a tree and goes from there to the next one. Archives name one entry
// of a directory after the other, so most steps cost no system call, and whatever is done to an entry
// costs the look-up of one name. Symbolic links are followed inside the tree only: the root is where
// absolute ones begin, and its own parent.
//
// Nobody else may change the tree meanwhile. Whoever removes a directory or a symbolic link calls moved.
type cursor struct {
	ours  *claims           // of who moves the cursor; may be nil
	dirs  []openDir         // from the root down
	links map[string]string // what was asked for -> where it is, for paths through symbolic links
	used  map[string]bool   // what paths through symbolic links have depended on; nil when that is too much
}

// openDir is a directory that a cursor stands in or below.
type openDir struct {
	path string // in the tree, "" for the root
	fd   int    // for *at calls only (O_PATH); -1 where too many would be open
	own  bool   // the layer has brought all that it holds

	changed bool      // its modification time is to be set when the cursor leaves
	mtime   time.Time // to this
	inherit bool      // new entries take over more than the archive says: group or access list
}

// rel returns the path as callers spell it.
func (d *openDir) rel() string {
	if d.path == "" {
		return "/"
	}
	return d.path
}

// proc returns a path to an entry of the directory for the calls that have no *at form.
func (d *openDir) proc(name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", d.fd, name) }

// newCursor returns a cursor at the root of a tree, which must stay open.
func newCursor(tree *root, ours *claims) (*cursor, error) {
	fd, err := openDirAt(int(tree.f.Fd()), ".")
	if err != nil {
		return nil, err
	}
	return &cursor{ours: ours, dirs: []openDir{{fd: fd}}, links: map[string]string{}, used: map[string]bool{}}, nil
}

func openDirAt(at int, name string) (int, error) { return openHere(at, name, unix.O_PATH) }

// openHere opens a directory that is on the same mount as at: what somebody has mounted inside a tree is
// not part of it.
func openHere(at int, name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV}
	for {
		fd, err := unix.Openat2(at, name, &how)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

// dir returns the directory where the cursor stands. It is good until the cursor moves.
func (c *cursor) dir() *openDir { return &c.dirs[len(c.dirs)-1] }

// enter goes to the directory called name, absolute and clean. What is not there, or is no directory, is
// given to missing, which makes it as an entry of the current directory or refuses.
func (c *cursor) enter(name string, missing func(base string, occupied bool) error) error {
	if name == "/" {
		return c.leaveTo(0)
	}
	if c.dir().path == name {
		return nil
	}
	to, followed := c.links[name]
	if !followed {
		to = name
	}
	rest, err := c.common(to)
	if err != nil {
		return err
	}
	hops := 0
	for rest != "" {
		var base string
		base, rest, _ = strings.Cut(rest, "/")
		switch base {
		case "", ".":
			continue
		case "..": // of a symbolic link: names are clean
			c.use(c.dir().path)
			err = c.leaveTo(max(len(c.dirs)-2, 0))
		default:
			var target string
			if target, err = c.step(base, missing); target != "" {
				followed = true
				if hops++; hops > maxLinkHops {
					return invalid("too many symbolic links on the way to %q", name)
				}
				rest = target + "/" + rest
			}
		}
		if err != nil {
			return err
		}
	}
	if followed {
		c.remember(name)
	}
	return nil
}

// remember notes where a path through symbolic links led to.
func (c *cursor) remember(name string) {
	if len(c.links) >= maxLinkNames {
		clear(c.links)
	}
	c.links[name] = c.dir().rel()
}

// use notes that a symbolic link led somewhere, or that the way there led through a directory and out again.
// Either lies in directories that must stay too.
func (c *cursor) use(rel string) {
	for ; rel != "" && c.used != nil && !c.used[rel]; rel = rel[:strings.LastIndexByte(rel, '/')] {
		if c.used[rel] = true; len(c.used) > maxLinkNames {
			c.used = nil
		}
	}
}

// mayHaveUsed reports whether a path through symbolic links may lead elsewhere, or nowhere, without rel.
func (c *cursor) mayHaveUsed(rel string) bool { return c.used == nil || c.used[rel] }

// moved forgets what was found through symbolic links: one of them, or what one leads to, is gone.
func (c *cursor) moved() { clear(c.links) }

// common leaves the directories that are not on the way to name, and returns what is left of the way.
func (c *cursor) common(name string) (string, error) {
	i := len(c.dirs) - 1
	for ; i > 0; i-- {
		rest, ok := strings.CutPrefix(name, c.dirs[i].path)
		if ok && (rest == "" || rest[0] == '/') {
			break
		}
	}
	return name[len(c.dirs[i].path):], c.leaveTo(i)
}

// step goes down by one name. Where that is a symbolic link, it goes nowhere, or to the root, and
// returns the target.
func (c *cursor) step(base string, missing func(string, bool) error) (target string, err error) {
	if err := c.dir().allows(base); err != nil {
		return "", err
	}
	err = c.push(base)
	switch {
	case errors.Is(err, unix.ENOENT):
		err = missing(base, false)
	case errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP):
		target, err = readlinkAt(c.dir().fd, base)
		if err == nil {
			c.use(c.dir().path + "/" + base)
			if strings.HasPrefix(target, "/") {
				err = c.leaveTo(0)
			}
			return target, err
		}
		if !errors.Is(err, unix.EINVAL) {
			return "", err
		}
		err = missing(base, true)
	default:
		return "", err
	}
	if err == nil {
		err = c.push(base)
	}
	return "", err
}

// allows refuses names whose path would be too long. Symbolic links could lead an archive, and the memory
// that its paths take, to any depth.
func (d *openDir) allows(base string) error {
	if len(d.path)+1+len(base) > maxName {
		return invalid("its path is longer than %d bytes", maxName)
	}
	return nil
}

// push goes down into a directory of the current one.
func (c *cursor) push(base string) error {
	at := c.dir()
	fd, err := openDirAt(at.fd, base)
	if err != nil {
		return err
	}
	if len(c.dirs) > maxOpenDirs {
		unix.Close(at.fd)
		at.fd = -1
	}
	rel := at.path + "/" + base
	c.dirs = append(c.dirs, openDir{path: rel, fd: fd, own: at.own || c.ours.whole(rel)})
	return nil
}

// leaveTo goes up to the i-th directory.
func (c *cursor) leaveTo(i int) error {
	for len(c.dirs)-1 > i {
		if err := c.pop(); err != nil {
			return err
		}
	}
	return nil
}

func (c *cursor) pop() error {
	if err := c.settle(); err != nil {
		return err
	}
	d := c.dir()
	up := &c.dirs[len(c.dirs)-2]
	if up.fd < 0 {
		fd, err := openDirAt(d.fd, "..")
		if err != nil {
			return err
		}
		up.fd = fd
	}
	unix.Close(d.fd)
	c.dirs = c.dirs[:len(c.dirs)-1]
	return nil
}

// settle gives the current directory its modification time.
func (c *cursor) settle() error {
	d := c.dir()
	if !d.changed {
		return nil
	}
	d.changed = false
	return setTimeAt(d.fd, ".", d.mtime)
}

// touch is called before an entry of the current directory changes: it keeps the modification time, and
// finds out what new entries would inherit.
func (c *cursor) touch() error {
	d := c.dir()
	if d.changed {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return &os.PathError{Op: "stat", Path: d.rel(), Err: err}
	}
	d.changed, d.mtime = true, time.Unix(st.Mtim.Unix())
	d.inherit = st.Mode&unix.S_ISGID != 0
	if !d.inherit {
		_, err := unix.Lgetxattr(d.proc("."), aclDefault, nil)
		d.inherit = err == nil
	}
	return nil
}

// finish leaves all directories.
func (c *cursor) finish() error {
	if err := c.leaveTo(0); err != nil {
		return err
	}
	return c.settle()
}

func (c *cursor) close() {
	for _, d := range c.dirs {
		if d.fd >= 0 {
			unix.Close(d.fd)
		}
	}
	c.dirs = nil
}

func readlinkAt(at int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(at, name, buf)
	if err != nil {
		return "", err
	}
	if n == 0 {
		return "", unix.ENOENT
	}
	return string(buf[:n]), nil
}

// lookup goes to the directory of name without making anything, and returns name's last element, "." for
// the root.
func (c *cursor) lookup(name string) (base string, err error) {
	if name == "/" {
		return ".", c.leaveTo(0)
	}
	err = c.enter(path.Dir(name), func(base string, occupied bool) error {
		if occupied {
			return &os.PathError{Op: "open", Path: path.Join(c.dir().rel(), base), Err: unix.ENOTDIR}
		}
		return &os.PathError{Op: "open", Path: path.Join(c.dir().rel(), base), Err: unix.ENOENT}
	})
	return path.Base(name), err
}
