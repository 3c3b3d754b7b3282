package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/dmlayer/dmlayer/internal/errs"
)

// openSource opens what Load was given: a directory, a file, or "-" for a stream.
func openSource(ctx context.Context, source string, o LoadOptions) (tree, error) {
	if source == "-" {
		if o.Input == nil {
			return nil, fmt.Errorf("image archive from a stream: no input: %w", ErrInvalid)
		}
		if isDirectory(o.Input) {
			err := fmt.Errorf("image archive from a stream: the input is a directory: %w", ErrInvalid)
			return nil, errs.WithHint(err, "name the directory instead of -")
		}
		return openStream(ctx, io.NopCloser(o.Input), o.SpoolDir)
	}
	info, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open image archive: %w: %w", err, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open image archive: %w", err)
	}
	switch {
	case info.IsDir():
		return openDir(source)
	case info.Mode().IsRegular():
		return fileTree(ctx, source, o.SpoolDir)
	case info.Mode()&fs.ModeNamedPipe != 0: // a shell's process substitution
		return openStream(ctx, &lateFile{name: source}, o.SpoolDir)
	}
	return nil, fmt.Errorf("image archive %s: is neither a file nor a directory: %w", source, ErrInvalid)
}

// isDirectory tells whether a stream is a directory that somebody has opened, which nobody can read.
func isDirectory(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.IsDir()
}

// fileTree reads a file, in place where it is a plain tar.
func fileTree(ctx context.Context, name, spoolDir string) (_ tree, err error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open image archive: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open image archive: %w", err)
	}
	head := make([]byte, 6)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("read image archive: %w", err)
	}
	if n == 0 {
		return nil, damaged("image archive %s: the file is empty", name)
	}
	kind, err := detect(head[:n])
	if err != nil {
		return nil, fmt.Errorf("image archive %s: %w", name, err)
	}
	if kind != plain {
		return openStream(ctx, f, spoolDir)
	}
	return indexTar(ctx, f, info.Size(), f)
}

// lateFile opens a FIFO at the first read, because that waits for the other end.
type lateFile struct {
	name string
	f    *os.File
}

func (l *lateFile) Read(p []byte) (int, error) {
	if l.f == nil {
		f, err := os.Open(l.name)
		if err != nil {
			return 0, err
		}
		l.f = f
	}
	return l.f.Read(p)
}

func (l *lateFile) Close() error {
	if l.f == nil {
		return nil
	}
	return l.f.Close()
}
