package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"math/bits"
	"os"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// media are the data and the metadata of a backing as they lie there, without anything of the pool being started.
type media struct {
	data, metadata *part
	release        func() error // of what had to be made available for them; nil is nothing
}

// Close closes both, and then gives back what made them available.
func (m *media) Close() error {
	var err error
	for _, p := range []*part{m.data, m.metadata} {
		if p != nil {
			err = errors.Join(err, p.file.Close())
		}
	}
	if m.release != nil {
		err = errors.Join(err, m.release())
	}
	return err
}

// part is one of the media: a file, or a device of which the first bytes may be the backing's own.
type part struct {
	name  string // for people: the path of the file or device, or what a volume is called
	path  string // of the file, where the part is all of a file that can be renamed; "" for devices
	file  *os.File
	begin int64 // bytes
	size  int64 // bytes, from there on
}

// openPart opens a file, or a block device of which the first bytes are not the part's.
func openPart(path string, begin int64, write bool) (*part, error) {
	flag := os.O_RDONLY
	if write {
		flag = os.O_RDWR
	}
	f, err := os.OpenFile(path, flag, 0)
	if errors.Is(err, os.ErrNotExist) {
		err = fmt.Errorf("%w: %w", err, errs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	p := &part{name: path, file: f, begin: begin}
	if err := p.measure(); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return p, nil
}

func (p *part) measure() error {
	st, err := p.file.Stat()
	if err != nil {
		return err
	}
	switch {
	case st.Mode().IsRegular():
		p.path = p.name
	case st.Mode()&os.ModeDevice != 0 && st.Mode()&os.ModeCharDevice == 0:
		// device-mapper's writes go past the cache of the device below, which may be of earlier.
		if err := fsutil.DropCache(p.file); err != nil {
			return err
		}
	default:
		return fmt.Errorf("%s is no file and no block device: %w", p.name, errs.ErrInvalid)
	}
	size, err := fsutil.SizeOf(p.file)
	p.size = int64(size) - p.begin
	if err == nil && p.size < 0 {
		err = fmt.Errorf("%s has %d bytes, and %d come before the part: %w", p.name, size, p.begin, errs.ErrDamaged)
	}
	return err
}

// ReadAt reads from the part.
func (p *part) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off >= p.size {
		return 0, io.EOF
	}
	if left := p.size - off; int64(len(b)) > left {
		n, err := p.file.ReadAt(b[:left], p.begin+off)
		if err == nil {
			err = io.EOF
		}
		return n, err
	}
	return p.file.ReadAt(b, p.begin+off)
}

// WriteAt writes to the part, and never behind its end.
func (p *part) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > p.size {
		return 0, fmt.Errorf("write to %s at %d: behind its end: %w", p.name, off, errs.ErrInvalid)
	}
	return p.file.WriteAt(b, p.begin+off)
}

// Sync makes what was written durable.
func (p *part) Sync() error { return p.file.Sync() }

// short yields the media that are not all that the superblock speaks of, with an ErrDamaged that says so.
func (m *media) short(super thinmeta.Superblock) iter.Seq2[*part, error] {
	return func(yield func(*part, error) bool) {
		for _, want := range []struct {
			part          *part
			blocks, block uint64
		}{
			{m.data, super.DataSpace.Blocks, uint64(super.DataBlockSize) * uint64(devmapper.SectorSize)},
			{m.metadata, super.MetadataSpace.Blocks, thinmeta.BlockSize},
		} {
			if want.blocks == 0 || want.block > 0 && uint64(want.part.size)/want.block >= want.blocks {
				continue
			}
			if !yield(want.part, fmt.Errorf("%s has %d bytes, and not %d blocks of %d: %w", want.part.name, want.part.size, want.blocks, want.block, errs.ErrDamaged)) {
				return
			}
		}
	}
}

// bytesOf is how many bytes blocks of that size are, or more than any device has.
func bytesOf(blocks, block uint64) int64 {
	high, low := bits.Mul64(blocks, block)
	if high > 0 || low > math.MaxInt64 {
		return math.MaxInt64
	}
	return int64(low)
}

// heldWithin is how much of metadata of that size can be held back, where the pool has that superblock: what it has taken it keeps.
func heldWithin(held, size int64, super thinmeta.Superblock) int64 {
	return max(min(held, size-bytesOf(super.MetadataSpace.Blocks, thinmeta.BlockSize)), 0)
}

// installCopy copies metadata from a file over the metadata of a backing that is no file, and removes the file once that is
// durable: as long as it is there, the copy is to be made.
func installCopy(ctx context.Context, b backing, path string) (err error) {
	m, err := b.open(ctx, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()
	from, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer from.Close()
	st, err := from.Stat()
	if err != nil {
		return err
	}
	w := io.NewOffsetWriter(m.metadata, 0)
	if _, err := io.Copy(w, io.NewSectionReader(from, 0, min(st.Size(), m.metadata.size))); err != nil {
		return fmt.Errorf("copy %s to %s: %w", path, m.metadata.name, err)
	}
	if err := m.metadata.Sync(); err != nil {
		return err
	}
	return removeFiles(path)
}
