package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
)

// The spare is a file beside the metadata, with blocks for as much, into which the metadata is repaired: when that is
// needed, the host may be full. What is in it means nothing. A repair that is accepted takes the metadata's name, and the old
// file gets one that says when.
func (f files) spare() string { return f.metadata() + ".spare" }

func (f files) damaged(when time.Time) string {
	return f.metadata() + ".damaged-" + when.UTC().Format("20060102T150405.000Z")
}

// salvaged is the metadata with zeros for what cannot be read of it, while it is being repaired.
func (f files) salvaged() string { return f.metadata() + ".salvaged" }

// damagedCopies are the metadata files that repairs have replaced.
func (f files) damagedCopies() []string {
	found, _ := filepath.Glob(f.metadata() + ".damaged-*")
	return found
}

// makeSpare makes the spare, or makes one whole that is not. It ends where the pool's metadata device ends, since a repair makes
// metadata for as much as there is, and has blocks for all of the metadata file.
func (l loopback) makeSpare(ctx context.Context) error {
	st, err := os.Stat(l.files.metadata())
	if err != nil {
		return err
	}
	whole, err := hasBlocks(l.files.spare(), st.Size())
	if err != nil || whole {
		return err
	}
	if err := removeFiles(l.files.spare()); err != nil {
		return err
	}
	if err := fsutil.Allocate(ctx, l.files.spare(), uint64(st.Size()), fsutil.Full); err != nil {
		return fmt.Errorf("spare for the metadata: %w", err)
	}
	return nil
}

// hasBlocks tells whether a file is there and has blocks for that many bytes.
func hasBlocks(path string, size int64) (bool, error) {
	var st unix.Stat_t
	err := unix.Stat(path, &st)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks*512 >= size, nil
}

// cutSpare makes the spare as large as the pool's metadata device, and keeps the blocks behind it.
func (l loopback) cutSpare() error {
	f, err := os.OpenFile(l.files.spare(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := os.Stat(l.files.metadata())
	if err != nil {
		return err
	}
	if err := f.Truncate((st.Size() - l.record.Backing.MetadataHeld) &^ 4095); err != nil {
		return err
	}
	for { // tmpfs and xfs give up at any signal, also at those of Go's scheduler
		err = unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, st.Size())
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	// A file system that cannot promise room has none to keep.
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return &os.PathError{Op: "fallocate", Path: f.Name(), Err: err}
	}
	return f.Sync()
}

// swapSpare puts the spare in the place of the metadata, which is kept under another name. There is no instant without
// metadata: up to the rename it is the old one, after it the new one.
func (l loopback) swapSpare(ctx context.Context, old string) error {
	st, err := os.Stat(l.files.metadata())
	if err != nil {
		return err
	}
	if err := fsutil.Extend(ctx, l.files.spare(), uint64(st.Size()), fsutil.Full); err != nil {
		return err
	}
	if err := l.dropUnswapped(st); err != nil {
		return err
	}
	if err := os.Link(l.files.metadata(), old); err != nil {
		return err
	}
	if err := pointRepairKept.Hit(); err != nil {
		return errors.Join(err, removeFiles(old))
	}
	if err := os.Rename(l.files.spare(), l.files.metadata()); err != nil {
		return errors.Join(err, removeFiles(old))
	}
	if err := fsutil.SyncDir(l.files.dir()); err != nil {
		return err
	}
	return pointRepairSwapped.Hit()
}

// dropUnswapped removes second names of the metadata, of repairs that died before they put anything in its place.
func (l loopback) dropUnswapped(metadata os.FileInfo) error {
	for _, path := range l.files.damagedCopies() {
		if st, err := os.Stat(path); err == nil && os.SameFile(st, metadata) {
			if err := removeFiles(path); err != nil {
				return err
			}
		}
	}
	return nil
}
