package layertar

import (
	"archive/tar"
	"bufio"
	"context"
	"fmt"
	"io"
)

const readSize = 64 << 10

// ApplyOptions says how Apply works. The zero value is right for a layer.
type ApplyOptions struct {
	// Progress, when set, is called after each entry with what was done so far. It must be quick.
	Progress func(Stats)

	// ForbidDevices refuses layers that bring character or block devices.
	ForbidDevices bool
}

// Stats tells what Apply did.
type Stats struct {
	Entries   int   // headers in the archive
	Bytes     int64 // sum of the sizes of regular files, holes included
	Whiteouts int   // whiteouts and opaque markers among the entries

	// Rewritten tells that the layer replaced a file, or a directory, that it had brought itself, or removed a
	// symbolic link that it had perhaps used, alone or with the directory around it. What was there first is
	// nowhere in the tree, or not where its name leads, so a Recorder's record cannot bring the archive back.
	Rewritten bool

	// Warnings names what the file system could not hold and was left out, such as an extended
	// attribute in an unknown namespace. At most maxWarnings of them are kept.
	Warnings []string
}

const maxWarnings = 100

// Apply extracts one layer, an uncompressed tar, onto the content of the lower layers in dir.
//
// It reads r to its end, also what follows the archive's end marker, so that a digest taken on the
// way covers everything. Owner, mode with setuid, setgid and sticky, extended attributes and the
// modification time, to the nanosecond, are those of the archive; a directory that the archive
// only passes through keeps its modification time, one that it takes for granted is made with mode
// 0755 and the time of the entry that needed it. Of an existing directory that the archive names
// again, attributes are replaced and content is kept. A file of a lower layer where the archive
// needs a directory makes way for it.
//
// Memory grows with the number of entries (their paths), not with their content. Only
// one Apply may work on a directory at a time. When it fails, what was extracted stays.
//
// Errors name the entry. ErrInvalid: the archive is malformed or asks for something that leads out
// of dir; ErrNoSpace; the context's error; else what the kernel or r said.
func Apply(ctx context.Context, dir string, r io.Reader, o ApplyOptions) (Stats, error) {
	tree, err := openRoot(dir)
	if err != nil {
		return Stats{}, fmt.Errorf("apply layer: %w", err)
	}
	defer tree.close()
	a, err := newApplier(ctx, tree, o)
	if err != nil {
		return Stats{}, fmt.Errorf("apply layer: %w", err)
	}
	defer a.close()

	src := &sourceReader{r: r}
	err = onOwnThread(func(exact bool) error {
		a.masks = !exact
		return a.archive(src)
	})
	if err != nil {
		if src.err == nil { // else the archive is not to blame
			err = classify(err)
		}
		if a.current != "" {
			err = fmt.Errorf("entry %.300q: %w", a.current, err)
		}
		return a.stats, fmt.Errorf("apply layer: %w", err)
	}
	return a.stats, nil
}

// archive applies all entries, and reads src to its end.
func (a *applier) archive(src *sourceReader) error {
	a.src = &source{r: bufio.NewReaderSize(src, readSize)} // an archive is read in steps of 512 bytes
	a.tr = tar.NewReader(a.src)
	for {
		if err := a.ctx.Err(); err != nil {
			return err
		}
		hdr, err := a.src.next(a.tr)
		if err == io.EOF {
			break
		}
		if err != nil {
			return a.headerError(src, err)
		}
		if err := a.entry(hdr); err != nil {
			return err
		}
		if err := a.skipContent(); err != nil {
			return err
		}
		if a.options.Progress != nil {
			a.options.Progress(a.stats)
		}
	}
	if err := a.at.finish(); err != nil {
		return err
	}
	a.current = ""
	return drain(a.ctx, a.src)
}

// headerError is an error of reading the next header: where the source did not fail, the archive is to
// blame.
func (a *applier) headerError(src *sourceReader, err error) error {
	if a.current != "" {
		err = fmt.Errorf("the header after it: %w", err)
	}
	if src.err == nil {
		err = invalid("%w", err)
	}
	return err
}

// skipContent reads what an entry has that needs none.
func (a *applier) skipContent() error {
	_, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{a.tr}, a.buf)
	return err
}

// drain reads what is left of r.
func drain(ctx context.Context, r io.Reader) error {
	buf := make([]byte, 64<<10)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, err := r.Read(buf); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
