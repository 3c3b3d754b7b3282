package layertar

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"

	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
	"golang.org/x/sys/unix"
)

// Rebuild writes the archive that a Recorder recorded, taking the content of files from dir, which
// must hold the tree as it was when that archive had been applied.
//
// ErrDamaged: a file of the tree is missing or has other content, or the record is malformed; part
// of the archive may have been written by then.
func Rebuild(ctx context.Context, dir string, record io.Reader, w io.Writer) error {
	tree, err := openRoot(dir)
	if err != nil {
		return fmt.Errorf("rebuild layer tar: %w", err)
	}
	defer tree.close()
	z, err := gzip.NewReader(record)
	if err != nil {
		return fmt.Errorf("rebuild layer tar: read record: %w", classed{err, ErrDamaged})
	}
	at, err := newCursor(tree, nil)
	if err != nil {
		return fmt.Errorf("rebuild layer tar: %w", err)
	}
	defer at.close()
	a := &assembler{at: at, ctx: ctx, dec: json.NewDecoder(z)}
	out := &ctxWriter{ctx: ctx, w: w}
	if err := asm.WriteOutputTarStream(a, a, out); err != nil {
		if ctx.Err() == nil && out.err == nil {
			err = classed{err, ErrDamaged}
		}
		return fmt.Errorf("rebuild layer tar: %w", err)
	}
	return nil
}

// An assembler hands the entries of a record, and the files that they name, to tar-split.
type assembler struct {
	at   *cursor
	ctx  context.Context
	dec  *json.Decoder
	size int64 // of the file that the last entry names
}

var (
	_ storage.Unpacker   = (*assembler)(nil)
	_ storage.FileGetter = (*assembler)(nil)
)

// Next returns the next entry of the record. A path may come more than once.
func (a *assembler) Next() (*storage.Entry, error) {
	if err := a.ctx.Err(); err != nil {
		return nil, err
	}
	var e storage.Entry
	err := a.dec.Decode(&e)
	if err == io.EOF {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("read record: %w", err)
	}
	if e.Type != storage.FileType && e.Type != storage.SegmentType {
		return nil, fmt.Errorf("read record: unknown entry type %d", e.Type)
	}
	a.size = e.Size
	return &e, nil
}

// Get opens a file of the tree, following symbolic links on the way inside the tree only.
func (a *assembler) Get(name string) (io.ReadCloser, error) {
	base, err := a.at.lookup(path.Clean("/" + name))
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", name, err)
	}
	// The flags keep a fifo or a device from being waited for.
	fd, err := unix.Openat(a.at.dir().fd, base, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("entry %q: %w", name, &os.PathError{Op: "open", Path: name, Err: err})
	}
	f := os.NewFile(uintptr(fd), name)
	fi, err := f.Stat()
	if err == nil && (!fi.Mode().IsRegular() || fi.Size() != a.size) {
		err = fmt.Errorf("is %s of %d bytes, the archive has a file of %d", fi.Mode(), fi.Size(), a.size)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("entry %q: %w", name, err)
	}
	return f, nil
}

// ctxWriter stops at the end of the context, and remembers its own failures.
type ctxWriter struct {
	ctx context.Context
	w   io.Writer
	err error
}

func (c *ctxWriter) Write(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := c.w.Write(p)
	if err == nil && n < len(p) {
		err = errors.Join(c.err, io.ErrShortWrite)
	}
	c.err = err
	return n, err
}
