package layertar

import (
	"context"
	"errors"
	"io"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

const listSize = 1024 // names of a directory that are in memory at once

// A removal removes a directory with all that is below it. It enters no other file system that is
// mounted there, and takes trees deeper than a process may open files.
type removal struct {
	ctx  context.Context
	at   int // holds the first directory
	dirs []removing
}

// removing is a directory that is being emptied.
type removing struct {
	name  string
	f     *os.File // nil while too many are open
	names []string // read and not yet removed
}

func removeTree(ctx context.Context, at int, base string) error {
	r := &removal{ctx: ctx, at: at}
	defer r.close()
	err := r.enter(at, base)
	for err == nil && len(r.dirs) > 0 {
		err = r.next()
	}
	return err
}

// next removes one entry of the directory in hand, or goes into it, or removes the directory.
func (r *removal) next() error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	d := &r.dirs[len(r.dirs)-1]
	if len(d.names) == 0 {
		names, err := d.f.Readdirnames(listSize)
		if err == io.EOF {
			return r.leave()
		}
		if err != nil {
			return r.failed("list", "", err)
		}
		d.names = names
	}
	name := d.names[0]
	d.names = d.names[1:]
	fd := int(d.f.Fd())
	switch err := unix.Unlinkat(fd, name, 0); {
	case errors.Is(err, unix.EISDIR):
		return r.enter(fd, name)
	case err != nil && !errors.Is(err, unix.ENOENT):
		return r.failed("remove", name, err)
	}
	return nil
}

func (r *removal) enter(at int, name string) error {
	fd, err := openHere(at, name, unix.O_RDONLY)
	if err != nil {
		return r.failed("open", name, err)
	}
	if n := len(r.dirs); n > maxOpenDirs {
		up := &r.dirs[n-1]
		up.f.Close()
		up.f, up.names = nil, nil
	}
	r.dirs = append(r.dirs, removing{name: name, f: os.NewFile(uintptr(fd), name)})
	return nil
}

// leave removes a directory that is empty.
func (r *removal) leave() error {
	d := &r.dirs[len(r.dirs)-1]
	at := r.at
	if n := len(r.dirs); n > 1 {
		up := &r.dirs[n-2]
		if up.f == nil {
			fd, err := openHere(int(d.f.Fd()), "..", unix.O_RDONLY)
			if err != nil {
				return r.failed("open", "..", err)
			}
			up.f = os.NewFile(uintptr(fd), up.name)
		}
		at = int(up.f.Fd())
	}
	d.f.Close()
	if err := unix.Unlinkat(at, d.name, unix.AT_REMOVEDIR); err != nil {
		return r.failed("remove", "", err)
	}
	r.dirs = r.dirs[:len(r.dirs)-1]
	return nil
}

func (r *removal) failed(op, name string, err error) error {
	var all []string
	for _, d := range r.dirs[:min(len(r.dirs), maxOpenDirs)] {
		all = append(all, d.name)
	}
	return &os.PathError{Op: op, Path: path.Join(append(all, name)...), Err: err}
}

func (r *removal) close() {
	for _, d := range r.dirs {
		if d.f != nil {
			d.f.Close()
		}
	}
}
