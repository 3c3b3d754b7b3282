package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"sync"
)

const (
	maxNameBytes = 24 << 20 // of all names in an archive, so that its index has a bound
	maxLinks     = 16       // from one entry to the next
)

// tarTree is a tar archive that can be read at any place. Like an unpacked one, the last entry of a name
// counts.
type tarTree struct {
	src     io.ReaderAt
	closer  io.Closer
	mu      sync.Mutex
	entries map[string]tarEntry
}

type tarEntry struct {
	offset, size int64
	link         string // the path that a link leads to; "" for a file
	sparse       bool
}

// indexTar reads the headers of the tar archive of the given size. It closes nothing on error.
func indexTar(ctx context.Context, src io.ReaderAt, size int64, closer io.Closer) (*tarTree, error) {
	t := &tarTree{src: src, closer: closer, entries: map[string]tarEntry{}}
	return t, t.index(ctx, src, size, nil)
}

// index adds the entries of an archive; added, where set, is called after each.
func (t *tarTree) index(ctx context.Context, src io.ReaderAt, size int64, added func()) error {
	pos := io.NewSectionReader(src, 0, size)
	r := tar.NewReader(pos)
	names := 0
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return err
		}
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return tarError(err, first)
		}
		offset, err := pos.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		name, err := cleanName(h.Name)
		if err != nil || h.Typeflag == tar.TypeDir {
			continue // never asked for
		}
		if names += len(name) + len(h.Linkname) + 64; names > maxNameBytes {
			return damaged("image archive: too many files")
		}
		if e := t.add(name, h, offset); e.link == "" && !e.sparse && e.size > size-offset {
			return damaged("image archive: cut off within %s", name)
		}
		if added != nil {
			added()
		}
	}
}

func (t *tarTree) add(name string, h *tar.Header, offset int64) tarEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := tarEntry{}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		sparse := h.Typeflag == tar.TypeGNUSparse
		for k := range h.PAXRecords {
			sparse = sparse || strings.HasPrefix(k, "GNU.sparse.")
		}
		e = tarEntry{offset: offset, size: h.Size, sparse: sparse}
	case tar.TypeSymlink:
		e = tarEntry{link: path.Join(path.Dir(name), h.Linkname)}
	case tar.TypeLink:
		e = tarEntry{link: path.Clean(h.Linkname)}
	default:
		delete(t.entries, name)
		return e
	}
	t.entries[name] = e
	return e
}

// tarError says what a tar reader's error means for an archive. Errors of the disk stay as they are.
func tarError(err error, first bool) error {
	switch {
	case first && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF)):
		return damaged("image archive: this is no tar archive")
	case errors.Is(err, io.ErrUnexpectedEOF):
		return damaged("image archive: cut off")
	case errors.Is(err, tar.ErrHeader), errors.Is(err, tar.ErrFieldTooLong):
		return damaged("image archive: %v", err)
	}
	return fmt.Errorf("read image archive: %w", err)
}

func (t *tarTree) Close() error {
	if t.closer == nil {
		return nil
	}
	return t.closer.Close()
}

func (t *tarTree) open(_ context.Context, name string) (*blob, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e, err := t.find(name)
	if err != nil {
		return nil, err
	}
	return &blob{ReaderAt: io.NewSectionReader(t.src, e.offset, e.size), size: e.size}, nil
}

// find returns the file that a name leads to. The caller has the lock.
func (t *tarTree) find(name string) (tarEntry, error) {
	clean, err := cleanName(name)
	if err != nil {
		return tarEntry{}, err
	}
	at := clean
	for range maxLinks {
		e, ok := t.entries[at]
		switch {
		case !ok:
			return e, fmt.Errorf("image archive: %s: %w: %w", clean, errMissing, ErrDamaged)
		case e.sparse:
			return e, unsupported("image archive: %s is stored as a sparse file", clean)
		case e.link != "":
			at = e.link
		default:
			return e, nil
		}
	}
	return tarEntry{}, damaged("image archive: %s is a link in a circle", clean)
}
