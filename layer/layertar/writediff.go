package layertar

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// WriteOptions says how WriteDiff finds what changed. The zero value compares two unrelated trees.
type WriteOptions struct {
	DiffOptions
	Differ Differ // nil is Walk
}

// WriteDiff writes an OCI layer, an uncompressed tar, that turns lower into upper when Apply or
// another tool of the kind applies it. An empty lower stands for the empty tree.
//
// Entries are in the order of a walk, whiteouts before what else their directory holds, but for names that
// vanish meanwhile. Times have nanoseconds and, with extended attributes, are in PAX records; user and group names are left out. Where
// one of several hard links changed, all of them are written, because a layer cannot rely on links
// into the one below. A root whose attributes or time changed is the entry "./". Opaque markers are
// not used.
//
// Sockets are left out, as every tool does. ErrInvalid: a file's name begins with ".wh.", which a
// layer cannot hold. The lower tree must stand still. Where the upper one does not, the layer has of each
// file what was so at some instant, but for content that is written to while it is read: that may be of
// several, with zeros for what was cut off. ErrBusy is that of Differ.
func WriteDiff(ctx context.Context, w io.Writer, lower, upper string, o WriteOptions) error {
	if err := writeDiff(ctx, w, lower, upper, o); err != nil {
		return fmt.Errorf("write layer tar: %w", classify(err))
	}
	return nil
}

func writeDiff(ctx context.Context, w io.Writer, lower, upper string, o WriteOptions) error {
	differ := o.Differ
	if differ == nil {
		differ = Walk{}
	}
	found := map[string]Change{}
	err := differ.Changes(ctx, lower, upper, o.DiffOptions, func(c Change) error {
		found[c.Path] = c
		return nil
	})
	if err != nil {
		return err
	}
	up, err := openTree(upper)
	if err != nil {
		return err
	}
	defer up.close()
	d := &diffWriter{ctx: ctx, tw: tar.NewWriter(w), tree: newFinder(up), links: map[uint64]string{}, buf: make([]byte, 64<<10)}
	defer d.tree.close()
	if err := d.completeLinks(found); err != nil {
		return err
	}
	writeRoot, err := rootDiffers(ctx, lower, up)
	if err != nil {
		return err
	}
	if writeRoot {
		found["/"] = Change{Kind: Modified, Path: "/"}
	} else {
		delete(found, "/")
	}
	if err := d.write(inOrder(found)); err != nil {
		return err
	}
	return d.tw.Close()
}

// rootDiffers reports whether the root needs an entry. The time of a root counts here.
func rootDiffers(ctx context.Context, lower string, up *node) (bool, error) {
	if lower == "" {
		return true, nil
	}
	low, err := openTree(lower)
	if err != nil {
		return false, err
	}
	defer low.close()
	same, err := sameFile(ctx, low, up)
	return !same, err
}

type diffWriter struct {
	ctx   context.Context
	tw    *tar.Writer
	tree  *finder
	links map[uint64]string // inodes with several links -> name of the entry that has the content
	buf   []byte
}

// write writes the entries for changes, which are in the order of a walk.
func (d *diffWriter) write(changes []Change) error {
	gone := map[string][]string{} // directory -> names
	for _, c := range changes {
		if c.Kind == Deleted {
			gone[path.Dir(c.Path)] = append(gone[path.Dir(c.Path)], path.Base(c.Path))
		}
	}
	if len(changes) == 0 || changes[0].Path != "/" {
		if err := d.whiteouts("/", gone["/"]); err != nil {
			return err
		}
	}
	passed := "" // what begins with it went with the directory that it was in
	for _, c := range changes {
		if c.Kind == Deleted || passed != "" && strings.HasPrefix(c.Path, passed) {
			continue
		}
		dir, err := d.entry(c)
		if err != nil {
			return fmt.Errorf("entry %q: %w", c.Path, err)
		}
		if !dir {
			passed = c.Path + "/"
			continue
		}
		if err := d.whiteouts(c.Path, gone[c.Path]); err != nil {
			return err
		}
	}
	return nil
}

func (d *diffWriter) whiteouts(dir string, names []string) error {
	for _, name := range names {
		if err := layerName(name); err != nil {
			return fmt.Errorf("entry %q: %w", path.Join(dir, name), err)
		}
		err := d.tw.WriteHeader(&tar.Header{
			Typeflag: tar.TypeReg,
			Name:     strings.TrimPrefix(path.Join(dir, whiteoutPrefix+name), "/"),
			ModTime:  time.Unix(0, 0),
			Format:   tar.FormatPAX,
		})
		if err != nil {
			return fmt.Errorf("whiteout of %q: %w", path.Join(dir, name), err)
		}
	}
	return nil
}

// layerName refuses names that mean something else in a layer.
func layerName(name string) error {
	if strings.HasPrefix(name, whiteoutPrefix) {
		return invalid("names that begin with %q mean deletions in a layer", whiteoutPrefix)
	}
	return nil
}

// entry writes what is at the place of a change now, and reports whether that is a directory. Of what has gone the layer says so.
func (d *diffWriter) entry(c Change) (dir bool, err error) {
	var e *tarEntry
	err = again(d.ctx, func() (err error) {
		e, err = d.find(c)
		return err
	})
	switch {
	case err != nil:
		return false, err
	case e == nil && c.Kind == Modified:
		return false, d.whiteouts(path.Dir(c.Path), []string{path.Base(c.Path)})
	case e == nil || e.hdr == nil:
		return false, nil
	}
	if e.content != nil {
		defer e.content.Close()
	}
	if err := d.tw.WriteHeader(e.hdr); err != nil {
		return false, err
	}
	if e.content != nil {
		err = d.copy(e.content, e.hdr.Size)
	}
	return e.hdr.Typeflag == tar.TypeDir, err
}

// tarEntry is a file as the layer is to have it.
type tarEntry struct {
	hdr     *tar.Header // nil for what no layer has
	content *os.File    // nil if there is none
}

// find looks at the place of a change, and returns nil where nothing is any more. So it does for a directory that was none when the trees were compared: what it
// holds was not looked at.
func (d *diffWriter) find(c Change) (*tarEntry, error) {
	n, err := d.tree.find(c.Path)
	if moved(err) || err == nil && c.file && n.isDir() {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := d.ctx.Err(); err != nil {
		return nil, err
	}
	if n.kind() == unix.S_IFSOCK {
		return &tarEntry{}, nil
	}
	e := &tarEntry{}
	if e.hdr, err = header(n); err != nil {
		return nil, err
	}
	first, again := d.links[n.st.Ino]
	switch {
	case n.linked() && again:
		e.hdr.Typeflag, e.hdr.Linkname, e.hdr.Size = tar.TypeLink, first, 0
		e.hdr.Devmajor, e.hdr.Devminor = 0, 0
	case e.hdr.Typeflag == tar.TypeReg && e.hdr.Size > 0:
		if e.content, err = n.content(); err != nil {
			return nil, err
		}
	}
	if n.linked() && !again {
		d.links[n.st.Ino] = e.hdr.Name
	}
	return e, nil
}

// copy writes a file's content, of which the header has told the size. What is missing of it by now is zeros, as in a file that somebody cuts off and makes longer again.
func (d *diffWriter) copy(f *os.File, size int64) error {
	for size > 0 {
		if err := d.ctx.Err(); err != nil {
			return err
		}
		chunk := d.buf[:min(size, int64(len(d.buf)))]
		got, err := io.ReadFull(f, chunk)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			clear(chunk[got:])
			err = nil
		}
		if err != nil {
			return err
		}
		if _, err := d.tw.Write(chunk); err != nil {
			return err
		}
		size -= int64(len(chunk))
	}
	return nil
}

// header returns what a tar says of a file.
func header(n *node) (*tar.Header, error) {
	if err := layerName(n.name); err != nil {
		return nil, err
	}
	hdr := &tar.Header{
		Name:    strings.TrimPrefix(n.rel, "/"),
		Mode:    int64(n.st.Mode & 0o7777),
		Uid:     int(n.st.Uid),
		Gid:     int(n.st.Gid),
		ModTime: n.mtime(),
		Format:  tar.FormatPAX,
	}
	switch n.kind() {
	case unix.S_IFREG:
		hdr.Typeflag, hdr.Size = tar.TypeReg, n.st.Size
	case unix.S_IFDIR:
		hdr.Typeflag = tar.TypeDir
		if hdr.Name += "/"; hdr.Name == "/" {
			hdr.Name = "./"
		}
	case unix.S_IFLNK:
		target, err := n.readlink()
		if err != nil {
			return nil, err
		}
		hdr.Typeflag, hdr.Linkname = tar.TypeSymlink, target
	case unix.S_IFIFO:
		hdr.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		hdr.Typeflag = tar.TypeChar
		if n.kind() == unix.S_IFBLK {
			hdr.Typeflag = tar.TypeBlock
		}
		hdr.Devmajor, hdr.Devminor = int64(unix.Major(n.st.Rdev)), int64(unix.Minor(n.st.Rdev))
	default:
		return nil, invalid("file type %#o has no place in a layer", n.kind())
	}
	set, err := n.xattrs()
	if err != nil {
		return nil, err
	}
	for name, value := range set {
		if hdr.PAXRecords == nil {
			hdr.PAXRecords = map[string]string{}
		}
		hdr.PAXRecords[paxXattr+name] = value
	}
	return hdr, nil
}

// completeLinks adds the unchanged paths that share an inode with a changed one.
func (d *diffWriter) completeLinks(found map[string]Change) error {
	missing := map[uint64]uint64{}     // inode -> links that are not among the changes
	for _, c := range inOrder(found) { // neighbours in the tree one after the other
		if c.Kind == Deleted {
			continue
		}
		n, err := d.tree.find(c.Path)
		if moved(err) || err == nil && !n.linked() {
			continue
		}
		if err != nil {
			return err
		}
		if _, ok := missing[n.st.Ino]; !ok {
			missing[n.st.Ino] = uint64(n.st.Nlink)
		}
		missing[n.st.Ino]--
	}
	for ino, links := range missing {
		if links == 0 {
			delete(missing, ino)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return d.findLinks(d.tree.root, func(n *node) {
		if _, ok := missing[n.st.Ino]; ok {
			found[n.rel] = Change{Kind: Modified, Path: n.rel}
		}
	})
}

// findLinks calls fn for each file of a tree that has several links.
func (d *diffWriter) findLinks(dir *node, fn func(*node)) error {
	if err := d.ctx.Err(); err != nil {
		return err
	}
	if err := dir.enter(); err != nil {
		if moved(err) {
			return nil
		}
		return err
	}
	for _, name := range dir.names {
		n, err := dir.child(name)
		if moved(err) {
			continue
		}
		if err != nil {
			return err
		}
		switch {
		case n.linked():
			fn(n)
		case n.isDir():
			err = d.findLinks(n, fn)
			n.close()
			if err != nil {
				return err
			}
		}
	}
	return nil
}
