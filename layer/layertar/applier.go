package layertar

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // markers and AUFS's own files
	whiteoutOpaque = ".wh..wh..opq"
)

// maxName is the longest name that an entry may have: longer ones do not fit into one system call
// together with the path of the tree.
const maxName = 4096 - 64

// An applier does for each entry what the archive library leaves out, and decides which entries the
// library extracts: regular files, symbolic links, devices and fifos. Directories, hard links and
// whiteouts are handled here, because the library
//
//   - ignores an entry for the root itself;
//   - keeps the extended attributes of a directory that a layer names again;
//   - gives a hard link's target the owner that the link's header says, which drops capabilities;
//   - lets whiteouts remove what the same layer brought, and cannot empty a root that is a magic link;
//   - follows symbolic links when it sets the times of directories, and fails where one is gone again;
//   - leaves the current time on directories that an archive only passes through;
//   - fails where a lower file stands in the way of a directory.
type applier struct {
	*root
	options ApplyOptions
	stats   Stats
	current string // name of the entry in hand, for errors

	ours    map[string]struct{}  // what this layer made, and the directories above it
	times   map[string]time.Time // modification times that directories get at the end
	known   map[string]string    // directories by name in the archive -> where they really are
	rootHdr *tar.Header          // the entry for the root itself
	after   func() error         // what is left to do for the entry that the library is extracting
}

func newApplier(tree *root, o ApplyOptions) *applier {
	return &applier{
		root:    tree,
		options: o,
		ours:    map[string]struct{}{"/": {}},
		times:   map[string]time.Time{},
		known:   map[string]string{},
	}
}

func (a *applier) warn(text string) {
	if len(a.stats.Warnings) < maxWarnings {
		a.stats.Warnings = append(a.stats.Warnings, fmt.Sprintf("%s: %s", a.current, text))
	}
}

// entry prepares the tree for an entry and reports whether nothing is left to do for it. It may
// change the header to what the library understands.
func (a *applier) entry(hdr *tar.Header) (done bool, err error) {
	if err := a.completed(); err != nil {
		return true, err
	}
	a.current = hdr.Name
	a.stats.Entries++
	sparse, err := normalize(hdr)
	if err != nil {
		return true, err
	}
	name := path.Clean("/" + hdr.Name)
	base := path.Base(name)

	switch {
	case hdr.Typeflag == tar.TypeXGlobalHeader, belongsToAUFS(name):
		return true, nil
	case name == "/":
		if hdr.Typeflag != tar.TypeDir {
			return true, invalid("the root is not a directory in the archive")
		}
		a.rootHdr = hdr
		return true, nil
	case strings.Contains(path.Dir(name)+"/", "/"+whiteoutPrefix):
		return true, invalid("below a whiteout")
	}

	parent, err := a.dir(path.Dir(name), hdr.ModTime)
	if err != nil {
		return true, err
	}
	rel := path.Join(parent, base)
	switch {
	case base == whiteoutOpaque:
		a.stats.Whiteouts++
		return true, a.hideBelow(parent)
	case strings.HasPrefix(base, whiteoutPrefix):
		a.stats.Whiteouts++
		return true, a.whiteout(parent, strings.TrimPrefix(base, whiteoutPrefix))
	case hdr.Typeflag == tar.TypeDir:
		return true, a.directory(rel, hdr)
	case hdr.Typeflag == tar.TypeLink:
		return true, a.link(rel, hdr)
	}
	if err := a.makeWay(rel, false); err != nil {
		return true, err
	}
	a.claim(rel)
	a.stats.Bytes += hdr.Size
	a.after = a.afterExtraction(rel, hdr, sparse)
	return false, nil
}

// completed does what is left for the entry before, which the library has extracted by now.
func (a *applier) completed() error {
	if after := a.after; after != nil {
		a.after = nil
		if err := after(); err != nil {
			return err
		}
	}
	if a.options.Progress != nil && a.stats.Entries > 0 {
		a.options.Progress(a.stats)
	}
	return nil
}

// afterExtraction returns what the library leaves undone for an entry, nil mostly: it writes out
// the holes of sparse files, and takes times before 1970 for 1970.
func (a *applier) afterExtraction(rel string, hdr *tar.Header, sparse bool) func() error {
	odd := hdr.ModTime.Before(time.Unix(0, 0)) || hdr.ModTime.After(time.Unix(0, 1<<63-1))
	if !sparse && !odd {
		return nil
	}
	mtime := hdr.ModTime
	return func() error {
		if sparse {
			if err := punchZeros(a.full(rel)); err != nil {
				return err
			}
		}
		return setTime(a.full(rel), mtime)
	}
}

// dir returns where the directory called name in the archive is, following symbolic links inside
// the tree, and makes what is missing.
func (a *applier) dir(name string, mtime time.Time) (string, error) {
	if name == "/" {
		return "/", nil
	}
	if rel, ok := a.known[name]; ok {
		return rel, nil
	}
	parent, err := a.dir(path.Dir(name), mtime)
	if err != nil {
		return "", err
	}
	rel := path.Join(parent, path.Base(name))
	fi, err := os.Lstat(a.full(rel))
	switch {
	case err == nil && fi.IsDir():
	case err == nil && fi.Mode()&fs.ModeSymlink != 0:
		target, err := a.resolve(rel)
		if err != nil {
			return "", err
		}
		// target has no symbolic link left in what exists of it, so this goes no deeper again
		if rel, err = a.dir(target, mtime); err != nil {
			return "", err
		}
	case err == nil || errors.Is(err, fs.ErrNotExist):
		if err := a.implied(rel, fi != nil, mtime); err != nil {
			return "", err
		}
	default:
		return "", err
	}
	a.known[name] = rel
	return rel, nil
}

// implied makes a directory that an entry takes for granted, in the place of a lower file if need be.
func (a *applier) implied(rel string, occupied bool, mtime time.Time) error {
	if _, mine := a.ours[rel]; mine && occupied {
		return invalid("%q is not a directory in this layer", rel)
	}
	if err := a.makeWay(rel, occupied); err != nil {
		return err
	}
	if err := os.Mkdir(a.full(rel), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(a.full(rel), 0o755); err != nil { // whatever the umask
		return err
	}
	a.claim(rel)
	a.times[rel] = mtime
	return nil
}

// makeWay is called before the entry of rel in its directory changes: it keeps the directory's
// time, and forgets known directories if one may vanish. With remove, what is there goes.
func (a *applier) makeWay(rel string, remove bool) error {
	if err := a.keepTime(path.Dir(rel)); err != nil {
		return err
	}
	fi, err := os.Lstat(a.full(rel))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if fi.IsDir() || fi.Mode()&fs.ModeSymlink != 0 {
		clear(a.known)
	}
	if !remove {
		return nil
	}
	return os.RemoveAll(a.full(rel))
}

// keepTime notes the modification time of a directory before its first change.
func (a *applier) keepTime(rel string) error {
	if _, ok := a.times[rel]; ok {
		return nil
	}
	fi, err := os.Lstat(a.full(rel))
	if err != nil {
		return err
	}
	a.times[rel] = fi.ModTime()
	return nil
}

// claim notes that this layer made rel, which whiteouts of the same layer must not remove.
func (a *applier) claim(rel string) {
	for {
		if _, ok := a.ours[rel]; ok {
			return
		}
		a.ours[rel] = struct{}{}
		rel = path.Dir(rel)
	}
}

// directory makes a directory, or gives an existing one the attributes of the archive.
func (a *applier) directory(rel string, hdr *tar.Header) error {
	fi, err := os.Lstat(a.full(rel))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil || !fi.IsDir() {
		if err := a.makeWay(rel, true); err != nil {
			return err
		}
		if err := os.Mkdir(a.full(rel), 0o700); err != nil {
			return err
		}
	}
	a.claim(rel)
	a.times[rel] = hdr.ModTime
	return a.attributes(rel, hdr)
}

// attributes gives a directory the owner, the extended attributes and the mode of the archive.
func (a *applier) attributes(rel string, hdr *tar.Header) error {
	if err := os.Lchown(a.full(rel), hdr.Uid, hdr.Gid); err != nil {
		return err
	}
	refused, err := replaceXattrs(a.full(rel), headerXattrs(hdr))
	if err != nil {
		return err
	}
	for _, what := range refused {
		a.warn("left out: " + what)
	}
	return os.Chmod(a.full(rel), hdr.FileInfo().Mode())
}

// link makes a hard link inside the tree. What the header says of owner, mode and times is not
// looked at: the target's entry has said it.
func (a *applier) link(rel string, hdr *tar.Header) error {
	name := path.Clean("/" + hdr.Linkname)
	dir, err := a.resolve(path.Dir(name))
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	target := path.Join(dir, path.Base(name))
	to, err := os.Lstat(a.full(target))
	if errors.Is(err, fs.ErrNotExist) {
		return invalid("hard link to %q: no such file in the tree", hdr.Linkname)
	}
	if err != nil {
		return fmt.Errorf("hard link to %q: %w", hdr.Linkname, err)
	}
	if to.IsDir() {
		return invalid("hard link to %q: a directory", hdr.Linkname)
	}
	a.claim(rel)
	if at, err := os.Lstat(a.full(rel)); err == nil && os.SameFile(at, to) {
		return nil
	}
	if err := a.makeWay(rel, true); err != nil {
		return err
	}
	return os.Link(a.full(target), a.full(rel))
}

// finish does what has to wait for the last entry.
func (a *applier) finish() error {
	if err := a.completed(); err != nil {
		return err
	}
	if a.rootHdr != nil {
		a.current = a.rootHdr.Name
		if err := a.attributes("/", a.rootHdr); err != nil {
			return err
		}
		a.times["/"] = a.rootHdr.ModTime
	}
	for rel, mtime := range a.times {
		a.current = rel
		// The directory may be gone, or be reached through a symbolic link by now.
		if at, err := a.resolve(rel); err != nil || at != rel {
			continue
		}
		fi, err := os.Lstat(a.full(rel))
		if err != nil || !fi.IsDir() {
			continue
		}
		if err := setTime(a.full(rel), mtime); err != nil {
			return err
		}
	}
	return nil
}
