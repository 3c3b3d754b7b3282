package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// tree is an archive as a set of files: a directory, or the entries of a tar.
type tree interface {
	// open returns a file by its slash-separated path; errMissing if there is none. Where the archive is
	// still being read, it waits for the file or the end.
	open(ctx context.Context, name string) (*blob, error)
	Close() error
}

// blob is a file of an archive, readable at any place, by several goroutines at once.
type blob struct {
	io.ReaderAt
	size   int64
	closer io.Closer // nil where the tree owns the file
}

func (b *blob) Close() error {
	if b.closer == nil {
		return nil
	}
	return b.closer.Close()
}

// reader returns the blob's bytes from the start; reading stops with ctx's error when ctx is done.
func (b *blob) reader(ctx context.Context) io.Reader {
	at := b.ReaderAt
	if s, ok := at.(spooled); ok {
		s.ctx = ctx // reading waits for what has not come yet
		at = s
	}
	return contextReader{ctx, io.NewSectionReader(at, 0, b.size)}
}

// contextReader stops reading when its context is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// cleanName makes a path of an archive relative to its top, and refuses one that leads out of it, or that
// is longer than a path can be.
func cleanName(name string) (string, error) {
	clean := path.Clean(name)
	if name == "" || len(name) >= unix.PathMax || strings.ContainsRune(name, 0) || path.IsAbs(clean) || clean == "." || clean == ".." || strings.HasPrefix(clean, "../") {
		return "", damaged("image archive: file name %.200q", name)
	}
	return clean, nil
}

// dirTree is an OCI layout or an unpacked docker save archive. Links that lead out of the directory are
// not followed.
type dirTree struct{ root *os.Root }

func openDir(dir string) (*dirTree, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open image layout: %w", err)
	}
	return &dirTree{root}, nil
}

func (t *dirTree) Close() error { return t.root.Close() }

func (t *dirTree) open(_ context.Context, name string) (*blob, error) {
	clean, err := cleanName(name)
	if err != nil {
		return nil, err
	}
	// O_NONBLOCK: opening a FIFO must not wait for its other end.
	f, err := t.root.OpenFile(clean, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, fmt.Errorf("image layout: %s: %w: %w", clean, errMissing, ErrDamaged)
	}
	var errno syscall.Errno
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, damaged("image layout: %s: links in a circle", clean)
	case err != nil && !errors.As(err, &errno): // what os.Root says itself has no number and no name
		err := unsupported("image layout: %s: a link that leads out of the layout", clean)
		return nil, errs.WithHint(err, "put the files themselves in the place of links, as cp -rL does")
	case err != nil:
		return nil, fmt.Errorf("image layout: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = damaged("%s is no regular file", clean)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("image layout: %w", err)
	}
	return &blob{ReaderAt: f, size: info.Size(), closer: f}, nil
}
