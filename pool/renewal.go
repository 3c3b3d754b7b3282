package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

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
	found, _ := filepath.Glob(filepath.Join(f.dir(), "*"+renewalMark+"*"))
	return found
}

// dropRenewals takes away what renewals left that died before they were recorded, or that have come to their end.
func (p *Pool) dropRenewals() error {
	for _, path := range p.files.renewals() {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// finishPrepared finishes what a repair or a renewal has decided and not come to the end of. The start/stop lock is held
// exclusively and the pool does not run.
func (s *Session) finishPrepared(ctx context.Context, b backing) error {
	if err := s.finishRepair(ctx, b); err != nil {
		return err
	}
	return s.finishRenewal(ctx, b)
}

// finishRenewal puts what a renewal has prepared and recorded in its place. The start/stop lock is held exclusively and the pool
// does not run. It can be repeated from any point: the metadata comes last.
func (s *Session) finishRenewal(ctx context.Context, b backing) error {
	if len(s.p.files.renewals()) == 0 {
		return nil
	}
	var record metadata.Pool
	err := s.Records.View(ctx, func(tx *metadata.Tx) (err error) {
		record, err = tx.Pool()
		return err
	})
	if err != nil {
		return err
	}
	places := s.p.files.renewal(record.TransactionID)
	if exists(places.metadata) {
		if err := s.swapRenewal(ctx, b, places); err != nil {
			return fmt.Errorf("finish the renewal: %w", err)
		}
	}
	// What was renamed, here or by one who died, is durable before the pool is used and before its last trace goes.
	if err := fsutil.SyncDir(s.p.files.dir()); err != nil {
		return err
	}
	return s.p.dropRenewals()
}

// swapRenewal leaves the old side files, if only an empty folder, as a trace that there is something to make durable.
func (s *Session) swapRenewal(ctx context.Context, b backing, places renewal) error {
	f := s.p.files
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
	if err := b.install(ctx, places.metadata); err != nil {
		return err
	}
	return pointRenewSwapped.Hit()
}

// exists tells whether there is something at a path; "could not tell" is yes, and what comes next says why.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, os.ErrNotExist)
}
