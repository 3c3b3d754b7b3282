package fsutil

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// FinishDeletions waits until what was deleted from the file system mounted at dir is free in its own books. xfs frees the blocks of
// a removed file in the background (since Linux 5.14), and nothing waits for that but a few requests, of which
// XFS_IOC_FREE_EOFBLOCKS changes the least. A trim that is to find them needs a SyncFS after this, too. ext4 has nothing to wait for.
func FinishDeletions(ctx context.Context, dir string) error {
	return onXFS(ctx, "finish deletions in file system at", dir, func(m *mounted) error {
		err := ioctl(int(m.dir.Fd()), reqXFSFreeEOF, &xfsFreeEOF{version: xfsFreeEOFVersion, flags: xfsFreeEOFSync})
		if errors.Is(err, unix.ENOTTY) {
			return nil
		}
		return err
	})
}

// trimStep is how much of an ext4 is trimmed between two looks at whether it has stopped: whole block groups.
const trimStep = 256 << 20

// Trim tells the device below the ext4 or xfs mounted at dir which blocks are free (FITRIM), also those of files that were deleted
// just before, and returns how many bytes that was, also beside an error.
//
// It makes those deletions durable first, and ends with ErrStopped where the file system cannot do so: an ext4 whose journal was aborted
// takes what it failed to delete for free, and FITRIM would discard it, though it is all there again after the next mount. One that
// stops during a step may lose what is deleted during the same step. A device without discard is errs.ErrUnsupported.
func Trim(ctx context.Context, dir string) (uint64, error) {
	trimmed, err := trim(ctx, dir)
	return trimmed, fail("trim file system at", dir, err)
}

func trim(ctx context.Context, dir string) (trimmed uint64, err error) {
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	m, err := openMounted(dir)
	if errors.Is(err, unix.EIO) {
		return 0, fmt.Errorf("%w: %w", ErrStopped, err) // an xfs that has shut down opens nothing
	}
	if err != nil {
		return 0, err
	}
	defer m.close()
	if err := m.settle(ctx, dir); err != nil {
		return 0, err
	}
	size, step := ^uint64(0), ^uint64(0) // an xfs looks itself, and discards as a whole what reaches into a step
	if m.typ == Ext4 {
		s, err := m.sizes()
		if err != nil {
			return 0, err
		}
		size, step = s.FS, trimStep
	}
	for at := uint64(0); at < size; at += min(step, size-at) {
		if err := context.Cause(ctx); err != nil {
			return trimmed, err
		}
		r := fstrimRange{start: at, length: min(step, size-at)}
		err := ioctl(int(m.dir.Fd()), reqFITRIM, &r)
		if err == nil {
			trimmed += r.length
		}
		if serr := m.stopped(); serr != nil {
			err = serr
		}
		if err != nil {
			return trimmed, err
		}
	}
	return trimmed, nil
}

// settleTries is how often a sync may fail: it reports, once, that data of earlier writes could not be written, and does then not say whether
// the file system's own records were.
const settleTries = 3

// settle makes durable what was deleted.
func (m *mounted) settle(ctx context.Context, dir string) error {
	var err error
	for range settleTries {
		if err := errors.Join(context.Cause(ctx), m.stopped()); err != nil {
			return err
		}
		if err = errors.Join(FinishDeletions(ctx, dir), SyncFS(dir)); err == nil {
			return m.stopped()
		}
		if !errors.Is(err, unix.EIO) && !errors.Is(err, unix.ENOSPC) {
			return err
		}
	}
	if serr := m.stopped(); serr != nil {
		return serr
	}
	return err
}
