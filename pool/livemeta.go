package pool

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// openMetadata runs fn on the metadata below a root, past the page cache, which knows nothing of what the kernel's thin
// pool writes.
func (p *Pool) openMetadata(root uint64, fn func(*thinmeta.Metadata) error) error {
	path, err := p.metadataNode()
	if err != nil {
		return err
	}
	return withMetadata(path, thinmeta.Options{Root: root}, fn)
}

func (p *Pool) metadataNode() (string, error) {
	info, err := p.dm.Info(devmapper.ByUUID(deviceUUID(p.record.UUID, suffixMetadata)))
	if err != nil {
		return "", err
	}
	return p.DeviceNode(info.Dev)
}

func withMetadata(path string, o thinmeta.Options, fn func(*thinmeta.Metadata) error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	m, err := thinmeta.Open(direct{fd, path}, o)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errs.ErrDamaged)
	}
	return fn(m)
}

// direct reads a device without what an os.File costs.
type direct struct {
	fd   int
	path string
}

func (d direct) ReadAt(b []byte, off int64) (n int, err error) {
	for n < len(b) {
		m, err := unix.Pread(d.fd, b[n:], off+int64(n))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return n, &os.PathError{Op: "read", Path: d.path, Err: err}
		}
		if m == 0 {
			return n, io.EOF
		}
		n += m
	}
	return n, nil
}

// glances is what a pool keeps for short looks at its metadata. The device is not kept open: nobody could stop the pool.
type glances struct {
	mu     sync.Mutex
	path   string // where the metadata device was last
	memory thinmeta.Memory
}

// errElsewhere says that a device is not the pool's metadata.
var errElsewhere = errors.New("not the pool's metadata")

// glance runs fn on the live metadata, which others change meanwhile. fn is run again where it fails, as what was read may
// have been overwritten in the middle.
func (s *Session) glance(fn func(*thinmeta.Metadata) error) error {
	g := &s.p.glances
	if !g.mu.TryLock() {
		return again(func() error { return s.p.openMetadata(0, fn) })
	}
	defer g.mu.Unlock()
	return again(func() error {
		err := errElsewhere
		if g.path != "" {
			err = s.glanceAt(g, fn)
		}
		if errors.Is(err, errElsewhere) {
			if g.path, err = s.p.metadataNode(); err == nil {
				err = withMetadata(g.path, thinmeta.Options{Memory: &g.memory}, fn)
			}
		}
		return err
	})
}

// glanceAt looks where the metadata was last. Since then the pool may have been stopped, and the minor number be
// another device's by now; the tag tells.
func (s *Session) glanceAt(g *glances, fn func(*thinmeta.Metadata) error) error {
	ours := false
	err := withMetadata(g.path, thinmeta.Options{Memory: &g.memory}, func(m *thinmeta.Metadata) error {
		if ours = m.Superblock().TransactionID>>tagBits == s.Status.TransactionID>>tagBits; ours {
			return fn(m)
		}
		return errElsewhere
	})
	if !ours {
		return errElsewhere
	}
	return err
}

// again repeats what fails by damage, which is likely to be a write that it met.
func again(fn func() error) (err error) {
	for range 4 {
		err = fn()
		if damaged := errors.Is(err, thinmeta.ErrDamaged) || errors.Is(err, errs.ErrDamaged); !damaged || errors.Is(err, unix.EIO) {
			break
		}
	}
	return err
}
