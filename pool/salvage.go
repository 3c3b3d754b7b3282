package pool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

// salvage sees to it that all of the metadata can be read. The programs end at the first block that cannot, and so, where there
// are any, they get a copy with zeros in their place, which needs that much room. So they do of metadata that is no file:
// it is what is kept of it.
func (r *repairer) salvage(ctx context.Context) error {
	meta := r.media.metadata
	bad, err := badBlocks(ctx, meta)
	if err != nil {
		return err
	}
	if r.report.BadBlocks = len(bad); r.report.BadBlocks == 0 && r.inFile {
		r.input = meta.path
		return nil
	}
	r.o.Progress("copy of what can be read of the metadata")
	to := r.p.files.salvaged()
	if err := removeFiles(to); err != nil {
		return err
	}
	if err := fsutil.Allocate(ctx, to, uint64(meta.size), fsutil.Full); err != nil {
		return fmt.Errorf("copy of what can be read of the metadata: %w", err)
	}
	if err := copyReadable(ctx, meta, to, bad); err != nil {
		return err
	}
	r.input = to
	return nil
}

// eachBlock reads a part block by block, past the page cache where it can, and gives fn each block or why it cannot be read.
func eachBlock(ctx context.Context, p *part, fn func(block int64, b []byte, err error) error) error {
	path := p.file.Name()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EINVAL) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return &os.PathError{Op: "open", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	defer f.Close()
	b := alignedBlock()
	for block := int64(0); ; block++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(b, p.begin+block*thinmeta.BlockSize)
		if errors.Is(err, io.EOF) {
			if n == 0 {
				return nil
			}
			err = nil
		}
		if err := fn(block, b[:n], err); err != nil {
			return err
		}
	}
}

func badBlocks(ctx context.Context, p *part) (map[int64]bool, error) {
	bad := map[int64]bool{}
	err := eachBlock(ctx, p, func(block int64, _ []byte, err error) error {
		if badBlock(err) {
			bad[block] = true
			return nil
		}
		return err
	})
	return bad, err
}

// copyReadable copies what can be read over a file of zeros.
func copyReadable(ctx context.Context, from *part, to string, bad map[int64]bool) (err error) {
	dst, err := os.OpenFile(to, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	err = eachBlock(ctx, from, func(block int64, b []byte, err error) error {
		if bad[block] {
			return nil
		}
		if err == nil {
			_, err = dst.WriteAt(b, block*thinmeta.BlockSize)
		}
		return err
	})
	return errors.Join(err, dst.Sync())
}
