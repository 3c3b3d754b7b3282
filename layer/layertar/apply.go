package layertar

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"sync"

	"github.com/containerd/containerd/v2/pkg/archive"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// ApplyOptions says how Apply works. The zero value is right for a layer.
type ApplyOptions struct {
	// Progress, when set, is called after each entry with what was done so far. It must be quick.
	Progress func(Stats)
}

// Stats tells what Apply did.
type Stats struct {
	Entries   int   // headers in the archive
	Bytes     int64 // sum of the sizes of regular files, holes included
	Whiteouts int   // whiteouts and opaque markers among the entries

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

	a := newApplier(tree, o)
	src := &sourceReader{r: r}
	_, err = archive.Apply(a.quiet(ctx), tree.path, src, archive.WithFilter(func(hdr *tar.Header) (bool, error) {
		ours, err := a.entry(hdr)
		return !ours, err
	}))
	if err == nil {
		err = a.finish()
	}
	if err == nil {
		a.current = ""
		err = drain(ctx, src)
	}
	if err != nil {
		if src.err == nil { // else the archive is not to blame
			err = classify(err)
		}
		if a.current != "" {
			err = fmt.Errorf("entry %q: %w", a.current, err)
		}
		return a.stats, fmt.Errorf("apply layer: %w", err)
	}
	return a.stats, nil
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

// quiet returns a context that makes the archive library log into the statistics: packages of this
// project do not log, and what was left out should reach the caller.
func (a *applier) quiet(ctx context.Context) context.Context {
	l := logrus.New()
	l.SetOutput(io.Discard)
	l.SetLevel(logrus.WarnLevel)
	l.AddHook(&warningHook{a: a})
	return log.WithLogger(ctx, logrus.NewEntry(l))
}

type warningHook struct {
	mu sync.Mutex
	a  *applier
}

func (h *warningHook) Levels() []logrus.Level { return []logrus.Level{logrus.WarnLevel} }

func (h *warningHook) Fire(e *logrus.Entry) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.a.warn(e.Message)
	return nil
}
