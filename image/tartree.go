package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
)

const (
	maxNameBytes = 64 << 20 // of all names in an archive, so that its index has a bound
	maxLinks     = 16       // from one entry to the next
)

// tarTree is a tar archive that can be read at any place. Like an unpacked one, the last entry of a name
// counts.
type tarTree struct {
	src     io.ReaderAt
	closer  io.Closer
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
	pos := io.NewSectionReader(src, 0, size)
	r := tar.NewReader(pos)
	names := 0
	for first := true; ; first = false {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, tarError(err, first)
		}
		offset, err := pos.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		name, err := cleanName(h.Name)
		if err != nil || h.Typeflag == tar.TypeDir {
			continue // never asked for
		}
		if names += len(name) + len(h.Linkname) + 64; names > maxNameBytes {
			return nil, damaged("image archive: too many files")
		}
		t.add(name, h, offset)
		if e := t.entries[name]; e.link == "" && !e.sparse && e.size > size-offset {
			return nil, damaged("image archive: cut off within %s", name)
		}
	}
	return t, nil
}

func (t *tarTree) add(name string, h *tar.Header, offset int64) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		sparse := h.Typeflag == tar.TypeGNUSparse
		for k := range h.PAXRecords {
			sparse = sparse || strings.HasPrefix(k, "GNU.sparse.")
		}
		t.entries[name] = tarEntry{offset: offset, size: h.Size, sparse: sparse}
	case tar.TypeSymlink:
		t.entries[name] = tarEntry{link: path.Join(path.Dir(name), h.Linkname)}
	case tar.TypeLink:
		t.entries[name] = tarEntry{link: path.Clean(h.Linkname)}
	default:
		delete(t.entries, name)
	}
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

func (t *tarTree) open(name string) (*blob, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, err
	}
	at := clean
	for range maxLinks {
		e, ok := t.entries[at]
		switch {
		case !ok:
			return nil, fmt.Errorf("image archive: %s: %w: %w", clean, errMissing, ErrDamaged)
		case e.sparse:
			return nil, unsupported("image archive: %s is stored as a sparse file", clean)
		case e.link != "":
			at = e.link
		default:
			return &blob{ReaderAt: io.NewSectionReader(t.src, e.offset, e.size), size: e.size}, nil
		}
	}
	return nil, damaged("image archive: %s is a link in a circle", clean)
}
