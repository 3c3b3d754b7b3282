package layertar

import (
	"context"
	"path"
	"sort"
	"time"
)

// clockTick is more than the distance of two ticks of the kernel's coarse clock, which stamps files:
// the longest is 10 ms, at 100 ticks a second.
const clockTick = 20 * time.Millisecond

// A walker compares two trees.
type walker struct {
	ctx     context.Context
	lineage bool

	found  map[string]Change
	links  []linkPair
	recent []recent  // unchanged by their stamps, but the stamps may deceive
	newest time.Time // change time of anything in lower
}

// A linkPair is a path that is the same in both trees but for its hard links.
type linkPair struct {
	rel          string
	lower, upper uint64 // inode numbers
}

type recent struct {
	rel   string
	ctime time.Time
}

func (w *walker) put(c Change) {
	if w.found == nil {
		w.found = map[string]Change{}
	}
	w.found[c.Path] = c
}

func (w *walker) add(k Kind, u *node) { w.put(Change{Kind: k, Path: u.rel, file: !u.isDir()}) }

func (w *walker) gone(rel string) { w.put(Change{Kind: Deleted, Path: rel}) }

func (w *walker) root(low, up *node) error {
	w.saw(low)
	same, err := sameOwnerAndMode(low, up)
	if err == nil && !same {
		w.add(Modified, up)
	}
	return err
}

// children compares what two directories hold, which have been entered. A nil low means that everything in up is new.
func (w *walker) children(low, up *node) error {
	names := up.names
	var old []string
	if low != nil {
		old = low.names
	}
	for len(names) > 0 || len(old) > 0 {
		var err error
		switch {
		case len(old) == 0 || len(names) > 0 && names[0] < old[0]:
			err = w.added(up, names[0])
			names = names[1:]
		case len(names) == 0 || old[0] < names[0]:
			w.gone(path.Join(up.rel, old[0]))
			old = old[1:]
		default:
			err = w.both(low, up, names[0])
			names, old = names[1:], old[1:]
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// look goes to a name in the upper tree, into it where it is a directory, and compares it with what the lower tree has under that name. The node is nil
// where nothing is any more. What somebody moves away or replaces meanwhile is looked at again.
func (w *walker) look(up *node, name string, l *node) (u *node, same bool, err error) {
	err = again(w.ctx, func() (err error) {
		same = false
		if u, err = up.child(name); err != nil {
			return goneIsNil(err)
		}
		if err := w.ctx.Err(); err != nil {
			return err
		}
		if u.isDir() {
			err = u.enter()
		}
		if err == nil && l != nil && l.kind() == u.kind() {
			same, err = w.same(l, u)
		}
		if err != nil {
			u.close()
		}
		return err
	})
	return u, same, err
}

func (w *walker) added(dir *node, name string) error {
	u, _, err := w.look(dir, name, nil)
	if err != nil || u == nil {
		return err
	}
	defer u.close()
	w.add(Added, u)
	return w.children(nil, u)
}

func (w *walker) both(low, up *node, name string) error {
	l, err := low.child(name)
	if err != nil {
		return err
	}
	w.saw(l)
	u, same, err := w.look(up, name, l)
	if err != nil {
		return err
	}
	if u == nil {
		w.gone(l.rel)
		return nil
	}
	defer u.close()
	switch {
	case !same:
		w.add(Modified, u)
	case l.linked() || u.linked():
		w.links = append(w.links, linkPair{u.rel, l.st.Ino, u.st.Ino})
	}
	if !l.isDir() || !u.isDir() {
		return w.children(nil, u)
	}
	defer l.close()
	if err := l.enter(); err != nil {
		return err
	}
	return w.children(l, u)
}

// same compares two files of one kind.
func (w *walker) same(l, u *node) (bool, error) {
	if w.lineage && untouched(l, u) {
		w.remember(u)
		return true, nil
	}
	return sameFile(w.ctx, l, u)
}

// untouched compares the stamps of two copies of one inode. Every change of content, attributes or
// links sets the change time, which no program can set back.
func untouched(l, u *node) bool {
	a, b := &l.st, &u.st
	return a.Ino == b.Ino && a.Ctim == b.Ctim && a.Mtim == b.Mtim && a.Mode == b.Mode && a.Uid == b.Uid &&
		a.Gid == b.Gid && a.Size == b.Size && a.Rdev == b.Rdev && a.Nlink == b.Nlink
}

// saw notes the change time of a file of the lower tree.
func (w *walker) saw(l *node) {
	if t := l.ctime(); t.After(w.newest) {
		w.newest = t
	}
}

// remember keeps files whose stamps may deceive. The kernel's clock for stamps stands still between
// two ticks. A file that was written before the trees parted, and again in the same tick, has equal stamps.
// Since nothing in lower is younger than the parting, only files as young as the youngest
// of lower can be like that; which one that is, is known at the end of the walk.
func (w *walker) remember(u *node) {
	t := u.ctime()
	if w.old(t) {
		return
	}
	if len(w.recent) == cap(w.recent) { // before it grows
		kept := w.recent[:0]
		for _, r := range w.recent {
			if !w.old(r.ctime) {
				kept = append(kept, r)
			}
		}
		w.recent = kept
	}
	w.recent = append(w.recent, recent{u.rel, t})
}

func (w *walker) old(ctime time.Time) bool { return ctime.Before(w.newest.Add(-clockTick)) }

// lookAgain compares the content of files whose stamps may deceive.
func (w *walker) lookAgain(low, up *node) error {
	if low == nil {
		return nil
	}
	lower, upper := newFinder(low), newFinder(up)
	defer lower.close()
	defer upper.close()
	for _, r := range w.recent {
		if w.old(r.ctime) {
			continue
		}
		l, err := lower.find(r.rel)
		if err != nil {
			return err
		}
		if err := w.compareAgain(l, upper); err != nil {
			return err
		}
	}
	return nil
}

// compareAgain compares what a file holds that was there, and the same by its stamps. It may have gone since, or be of another kind. That a
// directory has gone came after it was seen.
func (w *walker) compareAgain(l *node, upper *finder) error {
	return again(w.ctx, func() error {
		u, err := upper.find(l.rel)
		switch {
		case moved(err):
			if !l.isDir() {
				w.gone(l.rel)
			}
			return nil
		case err != nil:
			return err
		case l.kind() != u.kind():
			w.put(Change{Kind: Modified, Path: l.rel, file: !l.isDir()})
			return nil
		}
		same, err := sameFile(w.ctx, l, u)
		if err == nil && !same {
			w.add(Modified, u)
		}
		return err
	})
}

// relinked finds paths that are the same but share their inode with others than before.
func (w *walker) relinked() {
	toUpper, toLower := map[uint64]uint64{}, map[uint64]uint64{}
	for _, p := range w.links {
		if _, changed := w.found[p.rel]; changed {
			continue
		}
		u, seenLower := toUpper[p.lower]
		l, seenUpper := toLower[p.upper]
		if seenLower && u != p.upper || seenUpper && l != p.lower {
			w.put(Change{Kind: Modified, Path: p.rel, file: true})
			continue
		}
		toUpper[p.lower], toLower[p.upper] = p.upper, p.lower
	}
}

// list returns the changes in the order of a walk, with the directories above them.
func (w *walker) list() []Change {
	return inOrder(w.found)
}

// inOrder adds the directories above changes, and sorts.
func inOrder(found map[string]Change) []Change {
	all := make(map[string]Change, 2*len(found))
	for rel, c := range found {
		all[rel] = c
		for dir := path.Dir(rel); dir != "/"; dir = path.Dir(dir) {
			if _, ok := all[dir]; ok {
				break
			}
			if c, ok := found[dir]; ok {
				all[dir] = c
			} else {
				all[dir] = Change{Kind: Modified, Path: dir, Implied: true}
			}
		}
	}
	list := make([]Change, 0, len(all))
	for _, c := range all {
		list = append(list, c)
	}
	sort.Slice(list, func(i, j int) bool { return walksBefore(list[i].Path, list[j].Path) })
	return list
}

// walksBefore orders paths as a walk meets them: byte order, with the slash before every byte that a
// name may have.
func walksBefore(a, b string) bool {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] != b[i] {
			return a[i] == '/' || b[i] != '/' && a[i] < b[i]
		}
	}
	return len(a) < len(b)
}
