// Package treecmp compares two directory trees entry by entry, for tests: what one tool unpacked
// against what another one did. It shares no code with what it judges.
//
// Compared are type, mode with setuid, setgid and sticky, owner, size, modification time to the
// nanosecond, extended attributes, which paths share an inode, link targets, device numbers and the
// digests of contents. Not compared are access and change times, the sizes of directories, and how much
// of a file is holes.
//
// To compare an image as dmlayer mounts it with what umoci unpacks, unpack onto a file system of
// the kind that the pool uses (a loop-mounted ext4 or XFS image): tmpfs of Linux 6.1 has no user.*
// attributes. See scripts/umoci-unpack.
package treecmp

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options says what is left out of a comparison.
type Options struct {
	// Ignore reports that a path, relative to the root and "." for the root itself, is not to be
	// compared; what is below it isn't either.
	Ignore func(rel string) bool

	// IgnoreTimes reports that the modification time of a path is not to be compared: tools differ, for
	// example, in the time of directories that an archive does not name.
	IgnoreTimes func(rel string) bool

	// IgnoreXattr reports that an attribute is not to be compared. security.selinux, which a host's
	// policy sets, never is.
	IgnoreXattr func(name string) bool

	// Limit is how many differences are kept; 0 is 100. One more line tells how many were not.
	Limit int
}

// AgainstUmoci returns the options that compare an image of scripts/images with what umoci unpacked:
// umoci leaves the time of unpacking on the root, and on directories that the archive does not name.
func AgainstUmoci() Options {
	unnamed := map[string]bool{".": true, "no": true, "no/parent": true, "no/parent/is": true, "no/parent/is/named": true}
	return Options{IgnoreTimes: func(rel string) bool { return unnamed[rel] }}
}

// Compare returns the differences between the trees a and b, a line each, in the order of paths;
// none if they are equal. An error means that a tree could not be read.
func Compare(a, b string, o Options) ([]string, error) {
	left, err := read(a, o)
	if err != nil {
		return nil, err
	}
	right, err := read(b, o)
	if err != nil {
		return nil, err
	}
	d := &differences{limit: o.Limit}
	if d.limit == 0 {
		d.limit = 100
	}
	for _, rel := range union(left, right) {
		x, y := left[rel], right[rel]
		switch {
		case y == nil:
			d.add("%s: only in %s: %s", quote(rel), a, x.mode)
		case x == nil:
			d.add("%s: only in %s: %s", quote(rel), b, y.mode)
		default:
			d.entry(rel, x, y, o)
		}
	}
	return d.done(), nil
}

type differences struct {
	lines []string
	limit int
	more  int
}

func (d *differences) add(format string, a ...any) {
	if len(d.lines) >= d.limit {
		d.more++
		return
	}
	d.lines = append(d.lines, fmt.Sprintf(format, a...))
}

func (d *differences) done() []string {
	if d.more > 0 {
		return append(d.lines, fmt.Sprintf("and %d more", d.more))
	}
	return d.lines
}

func (d *differences) entry(rel string, x, y *entry, o Options) {
	name := quote(rel)
	if x.mode.Type() != y.mode.Type() {
		d.add("%s: type %s, %s", name, x.mode, y.mode)
		return
	}
	if x.mode != y.mode {
		d.add("%s: mode %s, %s", name, x.mode, y.mode)
	}
	if x.uid != y.uid || x.gid != y.gid {
		d.add("%s: owner %d:%d, %d:%d", name, x.uid, x.gid, y.uid, y.gid)
	}
	if x.size != y.size {
		d.add("%s: size %d, %d", name, x.size, y.size)
	}
	if !x.mtime.Equal(y.mtime) && (o.IgnoreTimes == nil || !o.IgnoreTimes(rel)) {
		const layout = "2006-01-02T15:04:05.000000000Z"
		d.add("%s: modified %s, %s", name, x.mtime.UTC().Format(layout), y.mtime.UTC().Format(layout))
	}
	if x.rdev != y.rdev {
		d.add("%s: device %d:%d, %d:%d", name, unix.Major(x.rdev), unix.Minor(x.rdev), unix.Major(y.rdev), unix.Minor(y.rdev))
	}
	if x.target != y.target {
		d.add("%s: link to %q, %q", name, x.target, y.target)
	}
	if x.sum != y.sum && x.size == y.size {
		d.add("%s: content %.12x, %.12x", name, x.sum, y.sum)
	}
	if x.links != y.links {
		d.add("%s: links to the same inode: %s; %s", name, orNone(x.links), orNone(y.links))
	}
	for _, key := range union(x.xattrs, y.xattrs) {
		v, okx := x.xattrs[key]
		w, oky := y.xattrs[key]
		if v != w || okx != oky {
			d.add("%s: attribute %s %s, %s", name, key, value(v, okx), value(w, oky))
		}
	}
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

func value(v string, ok bool) string {
	if !ok {
		return "missing"
	}
	return fmt.Sprintf("%q", v)
}

func quote(rel string) string {
	if strings.ContainsFunc(rel, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return fmt.Sprintf("%q", rel)
	}
	return rel
}

func union[V any](a, b map[string]V) []string {
	keys := make([]string, 0, len(a))
	for k := range a {
		keys = append(keys, k)
	}
	for k := range b {
		if _, ok := a[k]; !ok {
			keys = append(keys, k)
		}
	}
	sort.Strings(keys)
	return keys
}

type entry struct {
	mode     fs.FileMode
	uid, gid uint32
	size     int64
	mtime    time.Time
	rdev     uint64
	target   string
	sum      string
	links    string // the other paths of the inode
	xattrs   map[string]string
}

type inode struct{ dev, ino uint64 }

// read looks at every entry of a tree.
func read(root string, o Options) (map[string]*entry, error) {
	root += "/" // root itself may be a symbolic link
	tree := map[string]*entry{}
	shared := map[inode][]string{}
	err := filepath.WalkDir(root, func(p string, de fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		if o.Ignore != nil && o.Ignore(rel) {
			if de.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := os.Lstat(p)
		if err != nil {
			return err
		}
		e, err := look(p, fi, o)
		if err != nil {
			return err
		}
		tree[rel] = e
		if st := fi.Sys().(*syscall.Stat_t); st.Nlink > 1 && !fi.IsDir() {
			id := inode{uint64(st.Dev), st.Ino}
			shared[id] = append(shared[id], rel)
		}
		return nil
	})
	for _, paths := range shared {
		for _, rel := range paths {
			others := slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return p == rel })
			sort.Strings(others)
			tree[rel].links = strings.Join(others, " ")
		}
	}
	return tree, err
}

func look(p string, fi fs.FileInfo, o Options) (*entry, error) {
	st := fi.Sys().(*syscall.Stat_t)
	e := &entry{mode: fi.Mode(), uid: st.Uid, gid: st.Gid, mtime: fi.ModTime()}
	var err error
	switch {
	case fi.Mode().IsRegular():
		e.size = fi.Size()
		e.sum, err = digest(p)
	case fi.Mode()&fs.ModeSymlink != 0:
		e.target, err = os.Readlink(p)
	case fi.Mode()&fs.ModeDevice != 0:
		e.rdev = st.Rdev
	}
	if err != nil {
		return nil, err
	}
	e.xattrs, err = xattrs(p, o)
	return e, err
}

func digest(p string) (string, error) {
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return string(h.Sum(nil)), err
}

func xattrs(p string, o Options) (map[string]string, error) {
	names := make([]byte, 64<<10) // the kernel's own limit, XATTR_LIST_MAX
	n, err := unix.Llistxattr(p, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listxattr %s: %w", p, err)
	}
	set := map[string]string{}
	value := make([]byte, 64<<10) // XATTR_SIZE_MAX
	for _, name := range strings.Split(string(names[:n]), "\x00") {
		if name == "" || name == "security.selinux" || o.IgnoreXattr != nil && o.IgnoreXattr(name) {
			continue
		}
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return nil, fmt.Errorf("getxattr %s %s: %w", p, name, err)
		}
		set[name] = string(value[:n])
	}
	return set, nil
}
