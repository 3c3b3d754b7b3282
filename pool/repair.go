package pool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/dmlayer/dmlayer/devmapper"
	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/errs"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/internal/run"
	"github.com/dmlayer/dmlayer/metadata"
	"github.com/dmlayer/dmlayer/thinpool/thinmeta"
)

var (
	pointRepairStopped  = fault.New("pool.repair.stopped")
	pointRepairPrepared = fault.New("pool.repair.prepared")
	pointRepairKept     = fault.New("pool.repair.kept")
	pointRepairSwapped  = fault.New("pool.repair.swapped")
)

// RepairOptions say how metadata is repaired.
type RepairOptions struct {
	// Confirm is asked before anything is changed but the spare. Its error is RepairMetadata's. nil is yes.
	Confirm func(RepairReport) error
	// Progress is told what is done next. nil tells nobody.
	Progress func(step string)
}

// RepairReport says what a repair of a pool's metadata has found, and what it costs.
type RepairReport struct {
	Pool string
	// Sound says that there is no damage: at most the kernel's mark is taken away that asks for a check.
	Sound bool
	// BadBlocks is how many blocks of 4 KiB of the metadata could not be read from the disk.
	BadBlocks int
	// Said is what thin_check had against the metadata.
	Said string
	// Unreadable says why the old metadata could not be compared with the repaired, "" if it could.
	Unreadable string
	Losses     []Loss
	// MetadataSize is how large the metadata becomes, in bytes of the backing, where what is repaired did not fit otherwise. 0: it stays as large.
	MetadataSize int64
	// Label says that the label is lost and made anew from the records: nothing else says then that the data is this pool's.
	Label bool
	// Appeared are thin devices that the repaired metadata has and the damaged one had not any more.
	Appeared []metadata.ThinID
	// Old is where the old metadata is kept, "" where it was left as it was.
	Old string
}

// RepairMetadata repairs the metadata of a pool: it stops it if nothing is in use (else ErrBusy), has thin_check look at the metadata,
// repairs a copy in the spare, compares both with each other and with the records, asks, puts the
// copy in the place of the old metadata, which it keeps, and starts the pool. Until it has asked, nothing but the spare
// has changed. Killed anywhere, the pool has the old metadata or the repaired. Errors: ErrBusy,
// ErrNoSpace where there is no spare and no room for one, ErrDamaged where it cannot be repaired, ErrUnsupported without thin_repair.
func RepairMetadata(ctx context.Context, dirs Dirs, name string, o RepairOptions) (RepairReport, error) {
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	report := RepairReport{Pool: name}
	p, err := Open(ctx, dirs, name, nil)
	if err != nil {
		return report, err
	}
	defer p.Close()
	s, err := p.exclusive(ctx, "repair")
	if err != nil {
		return report, err
	}
	defer s.Exit()
	r := repairer{Session: s, o: o, report: report}
	if err := r.run(ctx); err != nil {
		return r.report, fmt.Errorf("repair pool %q: %w", name, kernelError(err))
	}
	return r.report, nil
}

// repairer is a RepairMetadata with its lock.
type repairer struct {
	*Session
	backing backing
	media   *media // of the stopped pool
	inFile  bool   // the metadata is a file, whose place another can take
	input   string // the file of the metadata as far as it can be read
	size    int64  // of the metadata that the spare is for
	all     bool   // it takes more than the pool has in use
	// devices are what has become of each thin device, nil where that is what thin_repair has found.
	devices map[metadata.ThinID]thinmeta.RepairedDevice
	o       RepairOptions
	report  RepairReport
}

func (r *repairer) run(ctx context.Context) error {
	if err := r.readRecord(ctx); err != nil {
		return err
	}
	var err error
	if r.backing, err = r.p.backing(); err != nil {
		return err
	}
	for _, tool := range []string{"thin_check", "thin_repair"} {
		if _, err := run.Look(tool); err != nil {
			return err
		}
	}
	if err := r.stop(ctx); err != nil {
		return err
	}
	defer func() { _ = removeFiles(r.p.files.salvaged()) }()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	if r.o.Confirm != nil {
		if err := r.o.Confirm(r.report); err != nil {
			return errors.Join(err, r.shrinkSpare(r.media.metadata.size, 0))
		}
	}
	if err := r.finish(ctx); err != nil {
		return err
	}
	r.o.Progress("start of the pool")
	r.relabel = r.report.Label
	if err := r.start(ctx); err != nil {
		return err
	}
	if r.relabel || len(r.report.Losses) > 0 {
		return r.CopyRecords(ctx) // the copies in the label are lost with it, or know nothing of the losses
	}
	return nil
}

func (r *repairer) stop(ctx context.Context) error {
	r.o.Progress("stop of the pool")
	if err := r.idle(ctx); err != nil {
		return err
	}
	if err := r.deactivateAll(ctx); err != nil {
		return err
	}
	if err := r.backing.detached(ctx); err != nil {
		return err
	}
	if err := pointRepairStopped.Hit(); err != nil {
		return err
	}
	if err := r.finishPrepared(ctx, r.backing); err != nil {
		return err
	}
	return r.settleLosses(ctx, r.backing)
}

// prepare writes into the spare what is to take the place of the metadata, and says how they differ.
func (r *repairer) prepare(ctx context.Context) (err error) {
	if r.media, err = r.backing.open(ctx, false); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.media.Close()) }()
	size := r.media.metadata.size
	r.inFile = r.media.metadata.path != ""
	held := r.p.record.Backing.MetadataHeld
	if sb, err := thinmeta.ReadSuperblock(r.media.metadata); err == nil {
		held = heldWithin(held, size, sb) // a growth that died may have recorded that more is held
	}
	if err := r.p.files.makeSpare(ctx, size); err != nil {
		return err
	}
	if err := r.salvage(ctx); err != nil {
		return err
	}
	if err := r.fill(ctx, size, held); err != nil {
		return errors.Join(err, r.shrinkSpare(size, held))
	}
	if err := r.examine(ctx); err != nil {
		return err
	}
	return pointRepairPrepared.Hit()
}

// onLoop runs fn on a loop device over a file: the programs want direct I/O, which a device has whatever the file lies
// on.
func (r *repairer) onLoop(ctx context.Context, path string, readOnly bool, fn func(device string) error) (err error) {
	loop, err := fsutil.Attach(ctx, fsutil.LoopOptions{Path: path, ReadOnly: readOnly, Autoclear: true})
	if err != nil {
		return err
	}
	defer func() {
		undo, cancel := UndoContext(ctx)
		defer cancel()
		if !readOnly {
			err = errors.Join(err, loop.File.Sync())
		}
		err = errors.Join(err, loop.Close(), fsutil.Detach(undo, loop.Number))
	}()
	return fn(loop.Path)
}

// metadataName is what people call the metadata.
func (r *repairer) metadataName() string {
	_, name := r.backing.names()
	return name
}

// agrees tells whether our own reader finds no damage, and whether blocks are in use for nothing.
func (r *repairer) agrees(ctx context.Context, path string) (sound, leaks bool) {
	f, err := os.Open(path)
	if err != nil {
		return false, false
	}
	defer f.Close()
	m, err := thinmeta.Open(f, thinmeta.Options{})
	if err != nil {
		return false, false
	}
	report, err := m.Check(ctx)
	return err == nil && report.Err() == nil, err == nil && len(report.Leaks) > 0
}

// overrides tell thin_repair what is in the superblock, where that is lost.
func (r *repairer) overrides() []string {
	f, err := os.Open(r.input)
	if err != nil {
		return nil
	}
	defer f.Close()
	if _, err := thinmeta.ReadSuperblock(f); err == nil {
		return nil
	}
	record := r.p.record
	return []string{
		"--transaction-id", strconv.FormatUint(record.TransactionID, 10),
		"--data-block-size", strconv.FormatUint(uint64(devmapper.SectorsOf(uint64(record.BlockSize))), 10),
		"--nr-data-blocks", strconv.FormatInt(r.media.data.size/record.BlockSize, 10),
	}
}

// thinCheck runs thin_check, and tells whether it is content. Blocks that are in use for nothing lose no data: it counts them as an error,
// but for its option.
func thinCheck(ctx context.Context, device string) (sound bool, said string, err error) {
	out, err := run.Do(ctx, run.Cmd{Program: "thin_check", Args: []string{"--ignore-non-fatal-errors", device}})
	if failed := (*run.Error)(nil); err != nil && (!errors.As(err, &failed) || failed.ExitCode < 0) {
		return false, "", err
	}
	return err == nil, strings.TrimSpace(string(bytes.Join([][]byte{out.Stdout, out.Stderr}, []byte("\n")))), nil
}

// copyMetadata copies metadata over what is in a spare. Most of either is empty, and what is there already is not written.
func copyMetadata(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	size, err := fsutil.SizeOf(dst)
	if err != nil {
		return err
	}
	const chunk = 64 << 10
	want, have := make([]byte, chunk), make([]byte, chunk)
	for at := int64(0); at < int64(size); at += chunk {
		n, err := src.ReadAt(want[:min(chunk, int64(size)-at)], at)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if m, err := dst.ReadAt(have[:n], at); err == nil && m == n && bytes.Equal(want[:n], have[:n]) {
			continue
		}
		if _, err := dst.WriteAt(want[:n], at); err != nil {
			return err
		}
	}
	return dst.Sync()
}

// examine checks what was written into the spare, and compares it with the old metadata and with the records.
func (r *repairer) examine(ctx context.Context) error {
	r.o.Progress("comparison of old and repaired metadata")
	f, err := os.Open(r.p.files.spare())
	if err != nil {
		return err
	}
	defer f.Close()
	repaired, err := thinmeta.Open(f, thinmeta.Options{})
	if err != nil {
		return fmt.Errorf("the repaired metadata: %w: %w", err, errs.ErrDamaged)
	}
	report, err := repaired.Check(ctx)
	if err == nil && report.Err() != nil {
		err = fmt.Errorf("the repaired metadata is not sound: %w: %w", report.Err(), errs.ErrDamaged)
	}
	if err != nil {
		return err
	}
	if err := r.fits(repaired.Superblock()); err != nil {
		return err
	}
	if err := r.readLabel(ctx, repaired); errors.Is(err, errLabelLost) {
		r.report.Label = true
	} else if err != nil {
		err := fmt.Errorf("the repaired metadata leads to no label of this pool, and would not start: %w: %w", err, errs.ErrDamaged)
		hint := "data and metadata do not belong together: put back the one that was mixed up; "
		if unreadable(err) {
			hint = "the disk cannot read the data any more: copy what can be read of it to another one; "
		}
		return errs.WithHint(err, hint+r.metadataName()+" is as it was")
	}
	return r.compare(ctx, repaired)
}

// fits tells whether the pool could be started on repaired metadata.
func (r *repairer) fits(super thinmeta.Superblock) error {
	record := r.p.record
	if have := int64(super.DataBlockSize) * int64(devmapper.SectorSize); have != record.BlockSize {
		return r.p.mispaired("the repaired metadata has blocks of %d bytes, the record says %d", have, record.BlockSize)
	}
	if !r.p.ofRecords(super) {
		return r.p.mispaired("the repaired metadata is of transaction %#x, the record store of %#x", super.TransactionID, record.TransactionID)
	}
	return nil
}

// finish puts the repaired metadata in its place, and makes the next spare.
func (r *repairer) finish(ctx context.Context) error {
	old := r.p.files.damaged(time.Now())
	if err := r.replace(ctx, old); err != nil {
		undo, cancel := UndoContext(ctx)
		defer cancel()
		return errors.Join(err, r.settleLosses(undo, r.backing))
	}
	r.report.Old = old
	// Without room there is none; pool check says so, and the pool is repaired all the same.
	if err := r.p.files.makeSpare(ctx, r.size); err != nil && !errors.Is(err, errs.ErrNoSpace) {
		return err
	}
	return nil
}

// replace puts the repaired metadata in its place, with what it lacks in the records, and keeps the old metadata.
func (r *repairer) replace(ctx context.Context, old string) error {
	if err := r.recordLosses(ctx); err != nil {
		return err
	}
	if err := r.growForRepaired(ctx); err != nil {
		return err
	}
	if err := r.swapSpare(ctx, old); err != nil {
		return err
	}
	return r.settleLosses(ctx, r.backing)
}
