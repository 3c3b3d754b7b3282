package layertar

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // markers and AUFS's own files
	whiteoutOpaque = ".wh..wh..opq"
)

// maxName is the longest name that an entry may have: a longer path cannot be said to the kernel.
const maxName = unix.PathMax - 1

// An applier turns the entries of an archive into files. It takes few system calls for each: a layer
// has tens of thousands.
type applier struct {
	ctx     context.Context
	options ApplyOptions
	stats   Stats
	current string // name of the entry in hand, for errors

	src        *source
	tr         *tar.Reader // of src
	buf        []byte
	endsInHole bool // what was written last

	at    *cursor // where the entry in hand belongs
	from  *cursor // where the last hard link's target was
	ours  *claims
	owner [2]int // what new files belong to
	masks bool   // the umask takes bits from modes
}

func newApplier(ctx context.Context, tree *root, o ApplyOptions) (*applier, error) {
	ours := newClaims()
	at, err := newCursor(tree, ours)
	if err != nil {
		return nil, err
	}
	from, err := newCursor(tree, nil)
	if err != nil {
		at.close()
		return nil, err
	}
	return &applier{
		ctx:     ctx,
		options: o,
		buf:     make([]byte, copySize),
		at:      at,
		from:    from,
		ours:    ours,
		owner:   [2]int{os.Geteuid(), os.Getegid()},
	}, nil
}

func (a *applier) close() {
	a.at.close()
	a.from.close()
}

func (a *applier) warn(text string) {
	if len(a.stats.Warnings) < maxWarnings {
		a.stats.Warnings = append(a.stats.Warnings, fmt.Sprintf("entry %.300q: %s", a.current, text))
	}
}

// entry makes one entry of an archive.
func (a *applier) entry(hdr *tar.Header) error {
	a.current = hdr.Name
	a.stats.Entries++
	sparse, err := normalize(hdr)
	if err != nil {
		return err
	}
	name := path.Clean("/" + hdr.Name)
	switch {
	case sparse && strings.Contains(name, "/"+whiteoutPrefix):
		return invalid("a whiteout that is a sparse file")
	case hdr.Typeflag == tar.TypeXGlobalHeader, belongsToAUFS(name):
		return nil
	case name == "/":
		return a.root(hdr)
	}
	parent, base := path.Split(name)
	if strings.Contains(parent, "/"+whiteoutPrefix) {
		return invalid("below a whiteout")
	}
	if err := a.enter(path.Clean(parent), hdr.ModTime); err != nil {
		return err
	}
	switch {
	case base == whiteoutOpaque:
		a.stats.Whiteouts++
		return a.hideAll()
	case strings.HasPrefix(base, whiteoutPrefix):
		a.stats.Whiteouts++
		return a.whiteout(strings.TrimPrefix(base, whiteoutPrefix))
	}
	if err := a.at.dir().allows(base); err != nil {
		return err
	}
	if hdr.Typeflag == tar.TypeDir {
		return a.directory(base, hdr)
	}
	if err := a.extract(base, hdr, sparse); err != nil {
		return err
	}
	return a.claim(base, true)
}

// claim notes that the layer has brought an entry of the current directory, and whether it has brought all
// that is below.
func (a *applier) claim(base string, whole bool) error {
	at := a.at.dir()
	if at.own {
		return nil
	}
	return a.ours.add(at.path+"/"+base, whole)
}

// brought reports whether the layer has brought an entry of the current directory, or something below it.
func (a *applier) brought(base string) bool {
	at := a.at.dir()
	return at.own || a.ours.holds(at.path+"/"+base)
}

func (a *applier) extract(base string, hdr *tar.Header, sparse bool) error {
	switch hdr.Typeflag {
	case tar.TypeLink:
		return a.link(base, hdr)
	case tar.TypeSymlink:
		return a.symlink(base, hdr)
	case tar.TypeReg:
		return a.file(base, hdr, sparse)
	}
	return a.special(base, hdr)
}

// enter goes to a directory of the archive. What is missing of it is made, in the place of a lower file
// if need be.
func (a *applier) enter(dir string, mtime time.Time) error {
	return a.at.enter(dir, func(base string, occupied bool) error {
		if occupied && a.brought(base) {
			return invalid("%.300q is not a directory in this layer", a.at.dir().path+"/"+base)
		}
		if err := a.newDir(base, &tar.Header{Typeflag: tar.TypeDir, Mode: 0o755, Uid: a.owner[0], Gid: a.owner[1], ModTime: mtime}); err != nil {
			return err
		}
		return setTimeAt(a.at.dir().fd, base, mtime)
	})
}

// root gives the root the attributes of its entry.
func (a *applier) root(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return invalid("the root is not a directory in the archive")
	}
	if err := a.at.leaveTo(0); err != nil {
		return err
	}
	if err := a.attributes(".", hdr, true); err != nil {
		return err
	}
	a.at.dir().keep(hdr)
	return nil
}

// directory makes a directory, or gives an existing one the attributes of the archive, and goes there:
// mostly its content comes next.
func (a *applier) directory(base string, hdr *tar.Header) error {
	at := a.at.dir()
	var st unix.Stat_t
	exists := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
	if !exists {
		if err := a.newDir(base, hdr); err != nil {
			return err
		}
	} else if err := a.claim(base, false); err != nil {
		return err
	}
	if err := a.at.push(base); err != nil {
		return a.pathError("open", base, err)
	}
	if exists { // and, as it could be entered, is of this tree
		if err := a.attributes(".", hdr, true); err != nil {
			return err
		}
	}
	a.at.dir().keep(hdr)
	return nil
}

// newDir makes a directory where none is.
func (a *applier) newDir(base string, hdr *tar.Header) error {
	err := a.create(base, func() error { return unix.Mkdirat(a.at.dir().fd, base, uint32(hdr.Mode)&0o777) })
	if err != nil {
		return err
	}
	if err := a.complete(base, hdr); err != nil {
		return err
	}
	return a.claim(base, true)
}

// keep notes what a directory's entry says of it for the time when the cursor leaves.
func (d *openDir) keep(hdr *tar.Header) {
	_, acl := hdr.PAXRecords[paxXattr+aclDefault]
	d.changed, d.mtime, d.inherit = true, hdr.ModTime, acl || hdr.Mode&unix.S_ISGID != 0
}

// create calls make, which is to make a new entry of the current directory; what lies in its place goes.
func (a *applier) create(base string, make func() error) error {
	if err := a.at.touch(); err != nil {
		return err
	}
	err := make()
	if errors.Is(err, unix.EEXIST) {
		if err = a.remove(base); err == nil {
			err = make()
		}
	}
	return a.pathError("create", base, err)
}

func (a *applier) pathError(op, base string, err error) error {
	if err == nil {
		return nil
	}
	return &os.PathError{Op: op, Path: path.Join(a.at.dir().rel(), base), Err: err}
}

// remove removes an entry of the current directory with all that is below it.
func (a *applier) remove(base string) error {
	if err := a.at.touch(); err != nil {
		return err
	}
	at := a.at.dir()
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return a.pathError("stat", base, err)
	}
	if a.brought(base) {
		a.rewrites(&st)
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR || kind == unix.S_IFLNK {
		a.stats.Rewritten = a.stats.Rewritten || a.at.mayHaveUsed(at.path+"/"+base)
		a.at.moved()
		a.from.moved()
	}
	if kind != unix.S_IFDIR {
		return a.pathError("remove", base, unix.Unlinkat(at.fd, base, 0))
	}
	if err := a.from.leaveTo(0); err != nil {
		return err
	}
	if err := removeTree(a.ctx, at.fd, base); err != nil {
		return fmt.Errorf("remove %.300q: %w", path.Join(at.rel(), base), err)
	}
	return nil
}

// rewrites notes that something goes which the layer itself has brought.
func (a *applier) rewrites(st *unix.Stat_t) {
	if kind := st.Mode & unix.S_IFMT; kind == unix.S_IFDIR || kind == unix.S_IFREG && st.Size > 0 {
		a.stats.Rewritten = true
	}
}

// link makes a hard link inside the tree. What the header says of owner, mode and times is not
// looked at: the target's entry has said it.
func (a *applier) link(base string, hdr *tar.Header) error {
	target := path.Clean("/" + hdr.Linkname)
	err := a.tryLink(base, target)
	if errors.Is(err, unix.EEXIST) {
		// What is removed may be on the way to the target, so that is looked up again.
		if err = a.remove(base); err == nil {
			err = a.tryLink(base, target)
		}
	}
	if errors.Is(err, unix.ENOENT) {
		return invalid("hard link to %.300q: no such file in the tree", hdr.Linkname)
	}
	if err != nil {
		return fmt.Errorf("hard link to %.300q: %w", hdr.Linkname, err)
	}
	return nil
}

// tryLink returns EEXIST where something else has the name.
func (a *applier) tryLink(base, target string) error {
	last, err := a.from.lookup(target)
	if err != nil {
		return err
	}
	if err := a.at.touch(); err != nil {
		return err
	}
	from, at := a.from.dir().fd, a.at.dir().fd
	err = unix.Linkat(from, last, at, base, 0)
	var to, have unix.Stat_t
	if err == nil || unix.Fstatat(from, last, &to, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return err
	}
	if to.Mode&unix.S_IFMT == unix.S_IFDIR {
		return invalid("a directory")
	}
	if errors.Is(err, unix.EEXIST) && unix.Fstatat(at, base, &have, unix.AT_SYMLINK_NOFOLLOW) == nil && have.Dev == to.Dev && have.Ino == to.Ino {
		return nil
	}
	return err
}
