package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/dmlayer/dmlayer/fsutil"
	"github.com/dmlayer/dmlayer/internal/fault"
	"github.com/dmlayer/dmlayer/metadata"
)

var (
	pointRenewBlobs   = fault.New("pool.renew.side-files")
	pointRenewSwapped = fault.New("pool.renew.swapped")
)

// renewal are the places of what a renewal has prepared. Their names have the transaction id of the new life: they count once the
// record has it too.
type renewal struct {
	metadata string
	blobs    string
	replaced string // the old side files, while they are replaced
}

const renewalMark = ".renewal-"

func (f files) renewal(tid uint64) renewal {
	suffix := fmt.Sprintf("%s%x", renewalMark, tid)
	return renewal{metadata: f.metadata() + suffix, blobs: f.blobs() + suffix, replaced: f.blobs() + ".old" + suffix}
}

// renewals are all such places that are there.
func (f files) renewals() []string {
	return named(f.dir(), func(name string) bool { return strings.Contains(name, renewalMark) })
}

// dropRenewals takes away what renewals left that died before they were recorded, or that have come to their end.
func (f files) dropRenewals() error {
	for _, path := range f.renewals() {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// finishPrepared finishes what a repair or a renewal has decided and not come to the end of. The start/stop lock is held
// exclusively and the pool does not run.
func (s *Session) finishPrepared(ctx context.Context, b backing) error {
	return s.p.files.finishPrepared(ctx, b, s.transaction)
}

// transaction reads the transaction id of the records.
func (s *Session) transaction(ctx context.Context) (tid uint64, err error) {
	err = s.Records.View(ctx, func(tx *metadata.Tx) error {
		r, err := tx.Pool()
		tid = r.TransactionID
		return err
	})
	return tid, err
}

// finishPrepared is Session.finishPrepared for a folder, wherever it is; transaction is asked where something is prepared.
func (f files) finishPrepared(ctx context.Context, b backing, transaction func(context.Context) (uint64, error)) error {
	if err := f.finishRepair(ctx, b); err != nil {
		return err
	}
	if len(f.renewals()) == 0 {
		return nil
	}
	tid, err := transaction(ctx)
	if err != nil {
		return err
	}
	return f.finishRenewal(ctx, b, tid)
}

// finishRenewal puts what a renewal has prepared and recorded in its place: the records are of that transaction. It can be repeated
// from any point: the metadata comes last.
func (f files) finishRenewal(ctx context.Context, b backing, tid uint64) error {
	places := f.renewal(tid)
	if exists(places.metadata) {
		if err := f.swapRenewal(ctx, b, places); err != nil {
			return fmt.Errorf("finish the renewal: %w", err)
		}
	}
	// What was renamed, here or by one who died, is durable before the pool is used and before its last trace goes.
	if err := fsutil.SyncDir(f.dir()); err != nil {
		return err
	}
	return f.dropRenewals()
}

// prepared returns where the metadata and the side files are that count, while the next start has yet to put them in their
// places: the file of the metadata, "" where it is in its place.
func (s *Session) prepared(ctx context.Context) (meta, blobs string, err error) {
	f := s.p.files
	blobs = f.blobs()
	if exists(f.repaired()) {
		meta = f.repaired()
	}
	if len(f.renewals()) == 0 {
		return meta, blobs, nil
	}
	tid, err := s.transaction(ctx)
	if err != nil {
		return "", "", err
	}
	if places := f.renewal(tid); exists(places.metadata) {
		meta = places.metadata
		if exists(places.blobs) {
			blobs = places.blobs
		}
	}
	return meta, blobs, nil
}

// revertRenewals puts the old side files back where a renewal had begun to be finished of which no record is left. The metadata
// is still the old one then.
func (f files) revertRenewals() error {
	for _, path := range f.renewals() {
		if !strings.HasPrefix(path, f.metadata()) {
			continue
		}
		suffix := strings.TrimPrefix(path, f.metadata())
		places := renewal{metadata: path, blobs: f.blobs() + suffix, replaced: f.blobs() + ".old" + suffix}
		if !exists(places.replaced) {
			continue
		}
		if exists(f.blobs()) && exists(places.blobs) { // neither rename was made
			continue
		}
		if exists(f.blobs()) {
			if err := os.Rename(f.blobs(), places.blobs); err != nil {
				return err
			}
		}
		if err := os.Rename(places.replaced, f.blobs()); err != nil {
			return err
		}
		if err := fsutil.SyncDir(f.dir()); err != nil {
			return err
		}
	}
	return nil
}

// swapRenewal leaves the old side files, if only an empty folder, as a trace that there is something to make durable.
func (f files) swapRenewal(ctx context.Context, b backing, places renewal) error {
	if !exists(places.replaced) {
		if err := os.Mkdir(places.replaced, 0o700); err != nil {
			return err
		}
	}
	if exists(places.blobs) {
		if exists(f.blobs()) {
			// Not os.Rename, which does not take the place of an empty folder.
			if err := unix.Rename(f.blobs(), places.replaced); err != nil {
				return &os.LinkError{Op: "rename", Old: f.blobs(), New: places.replaced, Err: err}
			}
		}
		if err := os.Rename(places.blobs, f.blobs()); err != nil {
			return err
		}
	}
	if err := pointRenewBlobs.Hit(); err != nil {
		return err
	}
	if err := fsutil.SyncDir(f.dir()); err != nil {
		return err
	}
	if err := f.install(ctx, b, places.metadata); err != nil {
		return err
	}
	return pointRenewSwapped.Hit()
}

// exists tells whether there is something at a path; "could not tell" is yes, and what comes next says why.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
