package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
)

var pointGrowSpare = fault.New("pool.grow.spare-file")

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
	prefix := filepath.Base(f.metadata()) + ".damaged-"
	return named(f.dir(), func(name string) bool { return strings.HasPrefix(name, prefix) })
}

// repaired is a spare that is to be copied over the metadata of a backing that is no file: the pool has been repaired, and
// whoever starts it finishes that.
func (f files) repaired() string { return f.metadata() + ".repaired" }

// makeSpare makes the spare for metadata of that size, or makes one whole that is not.
func (f files) makeSpare(ctx context.Context, size int64) error {
	whole, err := hasBlocks(f.spare(), size)
	if err != nil || whole {
		return err
	}
	if err := removeFiles(f.spare()); err != nil {
		return err
	}
	if err := fsutil.Allocate(ctx, f.spare(), uint64(size), fsutil.Full); err != nil {
		return fmt.Errorf("spare for the metadata: %w", err)
	}
	return nil
}

// growBacking makes the devices of a backing larger, and before that the spare, so that it is never smaller than the metadata. Metadata that is full is
// worse than one without a spare: where the host has no room for that, the pool grows all the same, and pool check says what is missing.
func (s *Session) growBacking(ctx context.Context, b backing, data, metadata int64) error {
	if err := s.growSpare(ctx, metadata); err != nil {
		return err
	}
	return b.grow(ctx, data, metadata)
}

// growSpare makes the spare large enough for metadata of that size.
func (s *Session) growSpare(ctx context.Context, size int64) error {
	f := s.p.files
	whole, err := hasBlocks(f.spare(), size)
	if err != nil || whole {
		return err
	}
	err = fsutil.Extend(ctx, f.spare(), uint64(size), fsutil.Full)
	switch {
	case errors.Is(err, errs.ErrNotFound): // there was no room for one, which pool check says
		return nil
	case errors.Is(err, errs.ErrNoSpace):
		s.p.log.Warn("no room for the metadata's spare, which a repair needs", "pool", f.name, "bytes", size, "error", err)
		return nil
	case err != nil:
		return fmt.Errorf("spare for the metadata: %w", err)
	}
	return pointGrowSpare.Hit()
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

// cutSpare makes the spare end where the pool's metadata device ends, since a repair makes metadata for as much as there is,
// and keeps blocks for all of the metadata, which is of that size.
func (f files) cutSpare(size, held int64) error {
	spare, err := os.OpenFile(f.spare(), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer spare.Close()
	if err := spare.Truncate((size - held) &^ 4095); err != nil {
		return err
	}
	for { // tmpfs and xfs give up at any signal, also at those of Go's scheduler
		err = unix.Fallocate(int(spare.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	// A file system that cannot promise room has none to keep.
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return &os.PathError{Op: "fallocate", Path: spare.Name(), Err: err}
	}
	return spare.Sync()
}

// swapSpare puts the spare in the place of the metadata, which is kept under another name. Killed anywhere, the pool has the
// old metadata or, once one rename is durable, the new one.
func (r *repairer) swapSpare(ctx context.Context, old string) error {
	if r.inFile {
		return r.swapFile(ctx, old)
	}
	f := r.p.files
	// The device is written over: what was in it is in the copy that the programs were given.
	if err := os.Rename(f.salvaged(), old); err != nil {
		return err
	}
	if err := fsutil.SyncDir(f.dir()); err != nil {
		return err
	}
	if err := pointRepairKept.Hit(); err != nil {
		return errors.Join(err, removeFiles(old))
	}
	if err := os.Rename(f.spare(), f.repaired()); err != nil {
		return errors.Join(err, removeFiles(old))
	}
	if err := fsutil.SyncDir(f.dir()); err != nil {
		return err
	}
	if err := pointRepairSwapped.Hit(); err != nil {
		return err
	}
	return f.finishRepair(ctx, r.backing)
}

// swapFile is swapSpare for metadata that is a file.
func (r *repairer) swapFile(ctx context.Context, old string) error {
	f := r.p.files
	st, err := os.Stat(f.metadata())
	if err != nil {
		return err
	}
	if err := fsutil.Extend(ctx, f.spare(), uint64(max(st.Size(), r.size)), fsutil.Full); err != nil {
		return err
	}
	if err := f.dropUnswapped(st); err != nil {
		return err
	}
	if err := os.Link(f.metadata(), old); err != nil {
		return err
	}
	if err := pointRepairKept.Hit(); err != nil {
		return errors.Join(err, removeFiles(old))
	}
	if err := f.install(ctx, r.backing, f.spare()); err != nil {
		return errors.Join(err, f.dropUnswapped(st))
	}
	return pointRepairSwapped.Hit()
}

// dropUnswapped removes second names of the metadata, of repairs that died before they put anything in its place.
func (f files) dropUnswapped(metadata os.FileInfo) error {
	now, err := os.Stat(f.metadata())
	if err != nil || !os.SameFile(now, metadata) {
		return err
	}
	for _, path := range f.damagedCopies() {
		if st, err := os.Stat(path); err == nil && os.SameFile(st, metadata) {
			if err := removeFiles(path); err != nil {
				return err
			}
		}
	}
	return nil
}

// finishRepair copies metadata that was repaired over that of a backing which is no file, where somebody died before he had. The
// start/stop lock is held exclusively and the pool does not run.
func (f files) finishRepair(ctx context.Context, b backing) error {
	path := f.repaired()
	if !exists(path) {
		return nil
	}
	if err := f.install(ctx, b, path); err != nil {
		return fmt.Errorf("finish the repair: %w", err)
	}
	return fsutil.SyncDir(f.dir())
}
